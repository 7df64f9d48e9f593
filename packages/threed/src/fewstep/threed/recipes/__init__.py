"""Methods of the threed domain, one file each."""
