"""Inputs that go wrong: generators of files that people have, and property tests on mutated input.

`kind.py` runs one kind of mutated input, `registry.py` lists the kinds; `test_kinds.py` runs some hundred cases of each
in continuous integration, `benchmarks/hostile.py` as many as one likes.
"""
