"""A source becomes a pinned folder that every container reads."""
