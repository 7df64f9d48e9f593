"""SIM as a recipe: expected gradients of the theory in both spaces, gradients through frozen networks."""
