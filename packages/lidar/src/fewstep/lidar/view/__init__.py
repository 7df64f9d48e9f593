"""Pictures of point clouds and an interactive page of them; light, so that listing commands loads no library."""
