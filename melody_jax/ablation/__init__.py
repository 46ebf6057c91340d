"""Paired ablation studies: arms differ in a few fields and share their data and random draws."""
