"""Clouds of 3D Gaussians.

What is stored and trained: :mod:`.parameters`, with its :mod:`.harmonics`. From space to the image: :mod:`.projection`.
Over pixels: :mod:`.tiles`, :mod:`.compositing`, by gsplat's arguments in :mod:`.rasterise`, on the backend there is in
:mod:`.render`, with depth and normals in :mod:`.geometry`. Where training puts them: :mod:`.densify`, :mod:`.mcmc`.
Files: :mod:`.ply`, :mod:`.splat`; what neither may hold: :mod:`.checked`.
"""
