"""LiDiff's networks on sparse voxels: scan encoder, denoiser, refiner (arXiv 2403.13470)."""
