"""Operating an endpoint: its state, checks, logs, metrics, and warming models."""
