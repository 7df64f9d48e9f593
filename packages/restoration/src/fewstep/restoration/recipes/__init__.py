"""Methods for restoration; those for any domain are in :mod:`fewstep.core.recipes`."""
