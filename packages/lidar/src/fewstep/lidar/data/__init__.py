"""Data of LiDAR scene completion.

Scans in their order, with labels and poses: :mod:`.sequence` and a file per layout. Dense maps of a sequence:
:mod:`.maps` on :mod:`.cells`. What a scan is compared with and learns from: :mod:`.crops`, :mod:`.pairs`,
:mod:`.augmentation`. Fewer points of the same shape: :mod:`.farthest`. Voxels of semantic completion: :mod:`.voxels`.
"""
