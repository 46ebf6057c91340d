"""Evaluation of generated and reconstructed clips: distances, judges of adherence, diagnosis."""
