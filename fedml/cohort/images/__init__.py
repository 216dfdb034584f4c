"""One image file to voxels, and the cache of prepared images."""
