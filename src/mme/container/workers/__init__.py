"""The parent that forks, and the worker that runs one model's handler."""
