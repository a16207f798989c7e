"""A stand-in for multi-model-server's package, of which handlers use ``mms.service.PredictionException`` alone."""

__version__ = "1.1.11"
