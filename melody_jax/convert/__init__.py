"""Published weights (Hugging Face layout) become our parameters: one file a network, `tensors.py` reads the files."""
