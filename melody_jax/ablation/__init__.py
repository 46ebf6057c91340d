"""Paired ablations: studies whose arms differ in a few fields and share everything that is drawn."""
