"""Recipes of the threed domain, one file per method."""
