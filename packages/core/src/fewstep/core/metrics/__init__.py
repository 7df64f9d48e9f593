"""Metrics of sample sets, each with the protocol that makes its number mean something.

Distances between sets: :mod:`.frechet`, :mod:`.kernel`, :mod:`.sliced`. Shape of a set: :mod:`.neighbours`,
:mod:`.diversity`. Pairs of images: :mod:`.paired`. :class:`.measure.Reference` runs them together in a declared
feature space.
"""
