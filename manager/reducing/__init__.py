"""Folds many results into one.

================  =============================================================================
reducers.py       what a reducer is, and which one a name stands for
elementwise.py ★  the built-in ones: sum, mean, weighted_mean, min, max
accumulators.py   one tensor's share of a reduction
measures.py       one metric's share of a reduction
contributions.py ★  what reducers take in, keep and give
schema.py ★       which tensors results have, and whether they are the same
batch.py ★        a worker's share of a reducing call
arithmetic.py     the arithmetic of that, which needs NumPy
shares.py ★       what a reducing call knows of each worker's share
================  =============================================================================
"""
