"""Converters of published weights (Hugging Face layout): one file per network; `tensors.py` reads the files."""
