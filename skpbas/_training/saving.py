"""Saving of fitted detectors in files without code."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

from sklearn.utils.validation import check_is_fitted

from skpbas._training.container import encoded
from skpbas._training.contents import contents_of
from skpbas._training.pickling import PicklingMixin
from skpbas.core.devices import callers_modes_left
from skpbas.errors import StorageError


class SavingMixin(PicklingMixin):
    """Saves a fitted detector in a file without code; see :class:`PicklingMixin` for pickles, which have some."""

    _snapshot: Callable[[], Any]

    def save(self, path: str | PathLike[str], *, include_backbone: bool = False) -> None:
        """Write the fitted detector to a file that runs no code when it is opened: :func:`skpbas.load`.

        The file is written under another name first, so an interruption leaves the old file or none. What is in it:
        see "File format" in the user guide.

        Parameters
        ----------
        path : str or Path
            Of the file, such as "part.skpbas". An existing one is replaced.
        include_backbone : bool, default=False
            Whether the file holds weights that it could do without: torchvision's and timm's, which are otherwise taken
            from their caches or downloaded when the file is opened, and those of "embedded". Weights from a file and
            random ones are always in it; those of a module never are, and it must be given to :func:`skpbas.load`.

        Raises
        ------
        NotFittedError
            The detector is not fitted.
        ValueError
            A parameter was changed after the fit to something that no file can hold.
        TypeError
            The detector is of a subclass, whose methods no file can hold.
        StorageError
            The file cannot be written.

        Examples
        --------
        >>> import tempfile
        >>> from pathlib import Path
        >>> import skpbas
        >>> from skpbas.datasets import make_inspection_images
        >>> images = make_inspection_images(n_normal=8, n_anomalous=0, size=64, random_state=0).images
        >>> detector = skpbas.PBASDetector("embedded", image_size=64, max_epochs=2, random_state=0).fit(images)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     detector.save(Path(folder) / "part.skpbas")
        ...     opened = skpbas.load(Path(folder) / "part.skpbas")
        >>> bool((opened.score_samples(images) == detector.score_samples(images)).all())
        True
        """
        check_is_fitted(self)
        if type(self).__module__.split(".")[0] != "skpbas":
            raise TypeError(f"save writes a PBASDetector, and this is a {type(self).__qualname__}: pickle it")
        with callers_modes_left(grad=False):
            content = encoded(*contents_of(self._snapshot(), include_backbone=include_backbone))
        write_atomically(Path(path), content)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file such that at any time there is the old one, or none, or all of the new one.

    Raises
    ------
    StorageError
        It cannot be written; the message has the reason.
    """
    target = Path(os.path.realpath(path))  # a link stays one
    unfinished = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        try:
            with open(unfinished, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, target)
        finally:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
        _sync_folder(target.parent)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error}): no file was changed") from error


def _sync_folder(folder: Path) -> None:
    """Make the new name permanent, where folders can be opened."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
