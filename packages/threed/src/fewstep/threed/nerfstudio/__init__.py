"""Score distillation inside nerfstudio: methods for `ns-train`, of core's recipes and this package's scenes and judges.

`world` and `training` know nothing of nerfstudio; the other modules are what its registry, its trainer and its
exporter ask for, and import it.
"""
