"""Metrics of clips, each with the protocol that makes its number mean something.

Distances between sets: :mod:`.frechet` in the spaces of :mod:`.features` and :mod:`.i3d`. What moves: :mod:`.motion`.
Prompts: :mod:`.similarity`. A total of scores measured elsewhere: :mod:`.vbench`. :mod:`.comparison` lays students side
by side and keeps one that stands still from winning.
"""
