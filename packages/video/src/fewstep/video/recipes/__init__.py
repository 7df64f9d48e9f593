"""Methods for video; those for any domain are in :mod:`fewstep.core.recipes`."""
