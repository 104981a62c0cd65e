"""The method itself in plain torch: no scikit-learn, no skorch, no training loop; files only where weights are read.

Read it in the order of the data: :mod:`~skpbas.core.backbones` (images to feature maps),
:mod:`~skpbas.core.aggregation` (feature maps to patch features), :mod:`~skpbas.core.centers` (the center set of ABL),
:mod:`~skpbas.core.synthesis` (AFS), :mod:`~skpbas.core.networks` (projector and discriminator),
:mod:`~skpbas.core.objective` (the terms of one optimization step), :mod:`~skpbas.core.coreset` (exemplars of the
training features), :mod:`~skpbas.core.patch_scores` (patch features to patch scores), :mod:`~skpbas.core.maps` (patch
scores to anomaly maps) and :mod:`~skpbas.core.model` (all of prediction in one network).
:mod:`~skpbas.core.folding` computes the same numbers with fewer operations, :mod:`~skpbas.core.devices` tells where.
"""
