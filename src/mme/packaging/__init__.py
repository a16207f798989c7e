"""One model's whole way into an archive: unchanged or retrieved, packed, verified and recorded."""
