"""Metrics of 3D: pictures and surfaces against true ones, views of an asset against each other."""
