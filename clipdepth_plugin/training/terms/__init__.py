"""The terms of the loss, one file each.

A new term is a new file here: a class derived from ``LossTerm``, named among the base classes of
``LossConfig`` in ``losses.py``.
"""
