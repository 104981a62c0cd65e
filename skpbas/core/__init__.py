"""The method itself in plain torch: no scikit-learn, no skorch, no training loop; files only where weights are read.

Read in the order of the data: :mod:`~skpbas.core.backbones` (images to level maps),
:mod:`~skpbas.core.aggregation` (level maps to patch features), :mod:`~skpbas.core.centers` (ABL's centre
set), :mod:`~skpbas.core.synthesis` (AFS), :mod:`~skpbas.core.networks` (projector and discriminator),
:mod:`~skpbas.core.losses` (one optimisation step's terms), :mod:`~skpbas.core.scorers` (trained networks to patch
scores) and :mod:`~skpbas.core.maps` (patch scores to anomaly maps). Behind the backbones stand
:mod:`~skpbas.core.weights` (where pretrained tensors come from), :mod:`~skpbas.core.embedded` (the small network in
the package), :mod:`~skpbas.core.packing` (weights as the CPU's kernels read them) and :mod:`~skpbas.core.levels`;
behind the scorers :mod:`~skpbas.core.folding` (fewer operations for the same numbers) and
:mod:`~skpbas.core.coreset` (exemplars of the training features).
"""
