"""Packages one model: recognised as unchanged, or retrieved, packed, verified and recorded."""
