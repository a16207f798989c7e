"""The endpoint, day by day: what it is doing, what is wrong with it, what it says, which models it has ready."""
