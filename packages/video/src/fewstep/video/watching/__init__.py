"""Watching a student train: collapse seen in its clips, with the likely cause, and the run stopped when asked to."""
