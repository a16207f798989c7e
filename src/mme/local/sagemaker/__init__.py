"""Endpoints of the local AWS: variants, their containers, and the runtime API."""
