"""Pictures that the embedded backbone is trained on; the package itself does not use them.

The materials, parts, light and camera of :mod:`skpbas.datasets.generated` are extended here. Read the modules in this
order, each uses those before it:

1. :mod:`pictures.more_noise`: Perlin and Worley noise;
2. :mod:`pictures.more_materials`, :mod:`pictures.labels`, :mod:`pictures.more_parts`: surfaces and parts that no
   inspection image shows;
3. :mod:`pictures.variety`: pictures of any material or part, in any light;
4. :mod:`pictures.training_pictures`: these and fractals, noise and collages, mixed and recolored.

The pictures are bound to their seeds: any change to what is drawn, or to the order of the draws, changes the weights.
"""
