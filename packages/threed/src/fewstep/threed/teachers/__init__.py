"""Frozen image models that judge renders: what they are told of a view, and the space they see it in."""
