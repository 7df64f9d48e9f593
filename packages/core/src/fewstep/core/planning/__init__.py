"""What a run will take in memory, before anything large is loaded."""
