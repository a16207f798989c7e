"""A stand-in for the Hugging Face inference toolkit, of which handlers import ``decoder_encoder``."""
