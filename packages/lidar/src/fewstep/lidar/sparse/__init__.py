"""Sparse 3-D convolution in plain torch: voxels as sorted integer keys, no hash table, any dtype, double backward."""
