"""Frozen backbones: images to feature maps, and these to patch features.

Read in this order: :mod:`~skpbas.core.backbones.levels` (networks that return the feature maps of named levels),
:mod:`~skpbas.core.backbones.building` (how they are made without touching torch's global random stream),
:mod:`~skpbas.core.backbones.embedded` (the small network in the package),
:mod:`~skpbas.core.backbones.timm_networks` (those of another library), :mod:`~skpbas.core.backbones.weights` (where
pretrained tensors come from), :mod:`~skpbas.core.backbones.factory` (makes the network that parameters name) and
:mod:`~skpbas.core.backbones.extractor` (the network with what follows it). Two modules make them faster without
changing their numbers: :mod:`~skpbas.core.backbones.batch_norms` and :mod:`~skpbas.core.backbones.packing`.
"""

from skpbas.core.backbones.extractor import FeatureExtractor
from skpbas.core.backbones.factory import TORCHVISION_BACKBONES, build_backbone
from skpbas.core.backbones.input_sizes import IMAGENET_MEAN, IMAGENET_STD
from skpbas.core.backbones.timm_networks import is_timm_name

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "TORCHVISION_BACKBONES",
    "FeatureExtractor",
    "build_backbone",
    "is_timm_name",
]
