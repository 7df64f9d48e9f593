"""The threed domain of fewstep: scenes and generators of scenes, distilled from image models."""
