"""Networks of restoration, the spaces they work in, and their files."""
