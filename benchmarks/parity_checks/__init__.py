"""Comparisons with a folder of numbers that the reference computed; used by `parity.py` and by the tests."""
