"""Exceptions raised by skpbas."""

from __future__ import annotations


class SkpbasError(Exception):
    """Base class of all skpbas exceptions."""


class InvalidImageError(SkpbasError, ValueError):
    """An invalid image or sequence of images."""


class ImageNotFoundError(InvalidImageError, FileNotFoundError):
    """An image path that does not exist."""


class InvalidTargetError(SkpbasError, ValueError):
    """Invalid labels, masks or anomaly maps, or ones that do not match the images."""


class WeightsError(SkpbasError, ValueError):
    """A weights file that does not match the backbone."""


class WeightsUnavailableError(SkpbasError, OSError):
    """Pretrained weights that are neither cached nor downloadable."""


class DatasetError(SkpbasError, FileNotFoundError):
    """A folder without the layout of the requested data set."""


class TrainingError(SkpbasError, ArithmeticError):
    """Training that cannot continue."""


class StorageError(SkpbasError, OSError):
    """A disk with too little space, or a file that cannot be written."""


class FileFormatError(SkpbasError, ValueError):
    """A stored detector that another version wrote, or that is damaged."""


class ExportError(SkpbasError, RuntimeError):
    """A detector that cannot be written in another format."""


class CalibrationError(SkpbasError, ValueError):
    """Held-out images that cannot guarantee the requested false alarm rate."""


class ClusterError(SkpbasError, RuntimeError):
    """A lost cluster, workers that die repeatedly, or one that cannot open the detector."""


class ResultsError(SkpbasError, ValueError):
    """Existing results from other images or another detector."""
