"""The video domain of fewstep: installed and listed, no recipes yet."""
