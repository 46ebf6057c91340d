"""Composed music: a composer, renderers and captions that make training data from a seed."""
