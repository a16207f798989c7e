"""Fixtures that more than one room of the house uses."""
