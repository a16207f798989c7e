"""Authorization in the local AWS: identities, policies and what they allow."""
