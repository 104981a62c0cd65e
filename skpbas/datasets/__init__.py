"""Data sets: loaders of public inspection data sets on disk, and generated inspection images."""

from skpbas._inputs.formats import IMAGE_FORMATS
from skpbas.datasets._loaders import list_images, load_mpdd, load_mvtec, load_visa
from skpbas.datasets.generated.inspection import DEFECT_TYPES, make_inspection_images
from skpbas.datasets.generated.products import INSPECTION_KINDS

__all__ = [
    "DEFECT_TYPES",
    "IMAGE_FORMATS",
    "INSPECTION_KINDS",
    "list_images",
    "load_mpdd",
    "load_mvtec",
    "load_visa",
    "make_inspection_images",
]
