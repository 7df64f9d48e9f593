"""The problems of the threed domain, one per kind of student."""
