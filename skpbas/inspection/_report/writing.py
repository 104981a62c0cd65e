"""The function that writes a report."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from skpbas._decisions.deciding import check_unsure_rate
from skpbas._inputs.checks import check_stream
from skpbas._inputs.mask_reader import with_maps
from skpbas._training.saving import write_atomically
from skpbas.errors import InvalidImageError, StorageError
from skpbas.inspection._report.page import page_of
from skpbas.inspection._report.pictures import share_of_page
from skpbas.inspection._report.records import how_resized, inspect
from skpbas.inspection._report.summary import ReportSummary
from skpbas.inspection._report.truth import Truth

__all__ = ["write_report"]

_USUAL_NUMBER = 1000  # of images, where they cannot be counted
_SIZES = 64, 4096


def write_report(
    detector: Any,
    images: Any,
    path: str | PathLike[str],
    *,
    labels: Any = None,
    masks: Any = None,
    title: str | None = None,
    unsure_rate: float | None = None,
    picture_size: int = 640,
    verbose: int = 0,
) -> ReportSummary:
    """Inspect images and write what was found to one HTML file, which any browser opens without a connection.

    It has a summary in words; the distribution of the margins, with a threshold that can be moved; a table of all
    images, to be sorted and filtered, with pictures and regions; images that could not be read; how the images differ
    from those of ``fit``; settings and versions. The margin of an image is ``decision_function``: below 0 is anomalous.

    An unreadable image is listed, and the others are inspected. The file is written under another name first, so an
    interruption leaves the old file or none.

    Parameters
    ----------
    detector : PBASDetector, ConformalThreshold or OnnxDetector
        Fitted.
    images : array, sequence or iterable of images
        An iterator is read once, to its end; one image is held at a time, and its pictures, up to 80 KB, to the end.
    path : str or Path
        Of the file, such as "report.html". An existing one is replaced.
    labels : None, labels or masks
        The truth, if it is known: +1 good, -1 defective. False alarms and misses are counted.
    masks : None or sequence of masks
        Where images are defective: see :func:`skpbas.masks.read_mask`; None, NaN or "" for a good image. Outlines are
        drawn; without ``labels``, an image with a defective pixel is defective.
    title : str or None, default=None
        None: "Inspection report".
    unsure_rate : float in (0, 0.5] or None, default=None
        As for :meth:`PBASDetector.verdicts() <skpbas.PBASDetector.verdicts>`; None: 0.05, or that of an
        OnnxDetector, which has no other.
    picture_size : int, default=640
        Longer side of the pictures, in pixels, from 64 to 4,096. They are made coarser where more than about 350 images
        would make a file of more than 30 MB; beyond 2,000 images it grows.
    verbose : int, default=0
        1: a progress bar.

    Returns
    -------
    ReportSummary

    Raises
    ------
    InvalidImageError
        No images, or something else than images.
    InvalidTargetError
        ``labels`` or ``masks`` do not fit the images.
    TypeError
        Another kind of detector, such as a pipeline.
    ValueError
        ``unsure_rate`` or ``picture_size`` is out of range.
    StorageError
        The file cannot be written there.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from skpbas import PBASDetector
    >>> from skpbas.datasets import make_inspection_images
    >>> from skpbas.inspection import write_report
    >>> parts = make_inspection_images(n_normal=9, n_anomalous=1, size=64, random_state=0)
    >>> detector = PBASDetector("embedded", image_size=64, max_epochs=2, random_state=0).fit(parts.images[:8])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     summary = write_report(detector, parts.images[8:], Path(folder) / "report.html", labels=parts.labels[8:])
    >>> summary.n_good, summary.n_defective
    (1, 1)
    """
    _check_detector(detector)
    target = Path(path)
    if target.is_dir():
        raise StorageError(f"{target} is a folder: give the report a name, such as {target / 'report.html'}")
    if not target.parent.is_dir():
        raise StorageError(f"{target} cannot be written: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise StorageError(f"{target} cannot be written: the folder {target.parent} is read-only")
    if unsure_rate is not None:
        check_unsure_rate(unsure_rate)
        if not hasattr(detector, "score_stream"):
            raise ValueError(f"unsure_rate={unsure_rate!r}: an exported detector has that of its export; pass None")
    if (
        isinstance(picture_size, bool)
        or not isinstance(picture_size, int)
        or not _SIZES[0] <= picture_size <= _SIZES[1]
    ):
        raise ValueError(f"picture_size={picture_size!r}: expected a whole number of pixels from 64 to 4,096")
    items = check_stream(images, "images", each=False)
    truth = Truth.of(labels, masks, items, with_maps(detector).map_shape_, how_resized(detector))
    found = inspect(
        detector,
        items,
        truth,
        unsure_rate=unsure_rate,
        picture_size=picture_size,
        share=share_of_page(len(items) if hasattr(items, "__len__") else _USUAL_NUMBER),
        show_progress=bool(verbose),
    )
    if not found.records and not found.unreadable:
        raise InvalidImageError("images has no image: there is nothing to report")
    summary = ReportSummary.of(found, target)
    page = page_of(found, summary, detector, "Inspection report" if title is None else title)
    write_atomically(target, page)
    return summary


def _check_detector(detector: Any) -> None:
    if not hasattr(detector, "score_stream") and not hasattr(detector, "iter_results"):
        raise TypeError(
            f"detector is a {type(detector).__name__}: expected a PBASDetector, a ConformalThreshold of one, or an "
            "OnnxDetector; of a pipeline pass the last step, and the images that reach it"
        )
    if isinstance(detector, BaseEstimator):
        check_is_fitted(detector)
