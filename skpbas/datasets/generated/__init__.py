"""Generator of the inspection images; internal, only :mod:`skpbas.datasets` is public.

Read the modules in this order, each uses those before it:

1. :mod:`.noise`: random fields and coordinates;
2. :mod:`.ranges`: ranges of numbers and colors that everything is drawn from;
3. :mod:`.light`: from a surface under a lamp to a photograph;
4. :mod:`.textures`, :mod:`.parts`, :mod:`.prints`: surfaces of materials, parts with an outline, and printed boards;
5. :mod:`.defects`: changes of a surface;
6. :mod:`.products`: the kinds of product, each with its lamp and camera;
7. :mod:`.inspection`: the public function, which photographs products with and without defects.
"""
