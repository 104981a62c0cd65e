"""The errors of skpbas: each names what was given, what was expected and the way out."""

from __future__ import annotations


class SkpbasError(Exception):
    """Base of every error that skpbas raises on its own account."""


class InvalidImageError(SkpbasError, ValueError):
    """An image, or a sequence of images, that the detector cannot take."""


class ImageNotFoundError(InvalidImageError, FileNotFoundError):
    """A path that leads to no file."""


class InvalidTargetError(SkpbasError, ValueError):
    """Labels, masks or anomaly maps that do not fit what they are compared with."""


class WeightsError(SkpbasError, ValueError):
    """A weights file that does not fit the backbone."""


class WeightsUnavailableError(SkpbasError, OSError):
    """Pretrained weights that are neither in the cache nor within reach."""


class DatasetError(SkpbasError, FileNotFoundError):
    """A folder that does not have the layout of the data set asked for."""


class TrainingError(SkpbasError, ArithmeticError):
    """A training run that cannot go on."""


class StorageError(SkpbasError, OSError):
    """A disk without room for what has to be kept."""


class FileFormatError(SkpbasError, ValueError):
    """A stored detector that another version wrote, or that is damaged."""


class CalibrationError(SkpbasError, ValueError):
    """Held-out images that cannot bear the false alarm rate asked for."""


class ClusterError(SkpbasError, RuntimeError):
    """A cluster that went away, or whose workers die over and over."""


class ResultsError(SkpbasError, ValueError):
    """A folder of results that come from other images, or from another detector."""
