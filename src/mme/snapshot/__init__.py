"""Turns a source into a snapshot: a folder that every supported version of transformers reads alike."""
