"""Scenes that are optimised or made: clouds of Gaussians, and fields read from three planes."""
