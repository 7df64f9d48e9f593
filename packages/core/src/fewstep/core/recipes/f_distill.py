"""f-distill (arXiv 2502.15681): DMD2 whose gradient is weighted by an f-divergence of the density ratio."""
