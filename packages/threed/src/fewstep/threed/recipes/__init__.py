"""Methods of this domain, one file each; those of core are in :mod:`fewstep.core.recipes`."""
