"""Uni-Instruct (arXiv 2505.20755): expanded f-divergences, with a density ratio from a discriminator."""
