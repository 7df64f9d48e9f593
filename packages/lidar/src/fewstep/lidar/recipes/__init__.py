"""Methods for point clouds; those for any domain are in :mod:`fewstep.core.recipes`."""
