"""f-distill as a recipe: weights of the density ratio on top of DMD2."""
