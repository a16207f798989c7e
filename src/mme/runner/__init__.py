"""Starts a container as a process and calls it by SageMaker's contract. Nothing else in the project does."""
