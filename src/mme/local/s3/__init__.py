"""Objects received, checked and kept as files."""
