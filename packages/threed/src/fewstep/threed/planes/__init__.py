"""Six planes out of a diffusion U-Net: how the network is adapted, its latents decoded, and what the planes mean.

A sample is "6 c h w": planes of geometry xy, xz, zy, then of texture xy, xz, zy. To networks planes are the batch,
"6b c h w", those of one object next to each other, and its condition is repeated to match. :mod:`.adapting` has the
factors, :mod:`.decoders` the way to feature planes, :mod:`.field` what is rendered, :mod:`.generator` all of it.
"""
