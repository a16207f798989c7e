"""Who may do what in the local AWS."""
