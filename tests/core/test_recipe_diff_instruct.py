"""Diff-Instruct as a recipe: expected gradients of the theory, recovery of a Gaussian, a mixture in the plane."""
