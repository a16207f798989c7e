"""A model's name and an input in, a prediction out."""
