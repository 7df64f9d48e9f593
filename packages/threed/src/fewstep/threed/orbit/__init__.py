"""From one picture to the views of an orbit, and from those to Gaussians and a mesh.

A sample is the latents of V views, "v c h w". The last view is the picture itself, at azimuth 0: what is made stands in
a world turned so that the picture was taken from the front. Conditions: ``image`` "b c h w", the latent of the picture;
``azimuth`` and ``polar`` "b v", in radians, the angles of the views from the picture's and from up.
"""
