"""The lidar domain of fewstep: installed and listed, no recipes yet."""
