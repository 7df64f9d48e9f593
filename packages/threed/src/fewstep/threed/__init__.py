"""The threed domain of fewstep: installed and listed, no recipes yet."""
