"""How good a prediction is: pure functions on numpy arrays, one file per quantity.

Input that is not a number raises ValueError. A value that cannot be had (no valid sample, no second frame) is None.
"""
