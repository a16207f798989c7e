"""Host many Hugging Face transformers models behind one Amazon SageMaker multi-model endpoint."""

__version__ = "0.1.0"
