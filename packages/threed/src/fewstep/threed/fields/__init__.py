"""Fields: planes sampled at points, what is read from them, how it becomes opacity, and images and meshes of it."""
