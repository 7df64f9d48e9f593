"""Uni-Instruct as a recipe: expanded f-divergences with an exact and with a learned density ratio."""
