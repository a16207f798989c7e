"""A stand-in for SageMaker's inference toolkit: its encoders, decoders, content types and errors."""
