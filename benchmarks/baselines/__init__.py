"""Plain implementations of what the released programs do: what the fast paths are measured against.

Written here, and tested in ``tests/benchmarks`` to give the values and gradients of ours. They are no second copy of a
model: a baseline model is ours with some of its modules replaced, on the same parameters.
"""
