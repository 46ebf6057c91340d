"""What a training step would cost on chips that are not here: counted, compiled ahead of time, held against a table."""
