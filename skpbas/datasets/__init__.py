"""Data sets: loaders of public inspection data sets on disk, and generated inspection images."""

from skpbas.datasets._generate import DEFECT_TYPES, make_inspection_images
from skpbas.datasets._kinds import INSPECTION_KINDS
from skpbas.datasets._layouts import load_mpdd, load_mvtec, load_visa

__all__ = [
    "DEFECT_TYPES",
    "INSPECTION_KINDS",
    "load_mpdd",
    "load_mvtec",
    "load_visa",
    "make_inspection_images",
]
