"""A fitted detector as a program of ``torch.export``."""

from __future__ import annotations

import io
import json
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from skpbas._decisions.deciding import UNSURE_RATE, check_unsure_rate
from skpbas._training.saving import write_atomically
from skpbas.core.devices import callers_modes_left
from skpbas.core.model import PBASModel
from skpbas.export._network import exportable, float32_copy, metadata_of, pixel_type, refusal

METADATA = "skpbas.json"
"""Name of the extra file with what :func:`~skpbas.export.to_onnx` writes as metadata."""

_LARGEST_SIDE = 2**15


def to_torch(detector: Any, path: str | PathLike[str], *, unsure_rate: float = UNSURE_RATE) -> None:
    """Write a fitted detector as a program of ``torch.export``, from images to scores and anomaly maps, in float32.

    The file needs torch and nothing else: no skpbas and no pickled code. The program takes ``images`` (n, H, W, 3),
    RGB, of any n, H and W: uint8 if all images of ``fit`` were, otherwise float32 in [0, 1]. It returns the scores
    (n,), minus ``score_samples``: higher is more anomalous; and the anomaly maps (n, h, w) at model size. Resizing,
    normalization, tiles and the evidence of whole images are part of it.

    Thresholds, the scores of the training images and versions are in the extra file "skpbas.json", as in the metadata
    of :func:`to_onnx`.

    Parameters
    ----------
    detector : PBASDetector
        Fitted; it is not changed.
    path : str or Path
        File to write, such as "detector.pt2". It is replaced once the new one is complete.
    unsure_rate : float in (0, 0.5], default=0.05
        Of the file's verdicts: see :meth:`PBASDetector.verdicts <skpbas.PBASDetector.verdicts>`.

    Raises
    ------
    ExportError
        A backbone that cannot be exported; the message names it and the cause. A detector fitted with ignored regions.
    StorageError
        The file cannot be written.

    Examples
    --------
    >>> from skpbas import PBASDetector
    >>> from skpbas.datasets import make_inspection_images
    >>> from skpbas.export import to_torch
    >>> images = make_inspection_images(n_normal=8, n_anomalous=0, size=64, random_state=0).images
    >>> detector = PBASDetector("embedded", image_size=64, max_epochs=2, random_state=0).fit(images)
    >>> to_torch(detector, "detector.pt2")  # doctest: +SKIP
    >>> program = torch.export.load("detector.pt2").module()  # doctest: +SKIP
    >>> scores, maps = program(torch.from_numpy(images))  # doctest: +SKIP
    """
    now = exportable(detector)
    check_unsure_rate(unsure_rate)
    with callers_modes_left(grad=False):
        network = float32_copy(now.model_)
        dtype = pixel_type(now)
        images = _Images(network, now._reading.view_shape, crop=now._reading.resize == "crop").eval()
        program = _exported(images, now, torch.uint8 if dtype == "uint8" else torch.float32)
        file = io.BytesIO()
        metadata = json.dumps(metadata_of(now, network, dtype, unsure_rate))
        torch.export.save(program, file, extra_files={METADATA: metadata})
    write_atomically(Path(path), file.getvalue())


class _Images(nn.Module):
    """What the program computes from images (n, H, W, 3): :meth:`Geometry.view` of each, and the model of all."""

    def __init__(self, model: PBASModel, view_shape: tuple[int, int], *, crop: bool) -> None:
        super().__init__()
        self.model, self.view_shape, self.crop = model, view_shape, crop

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        views = self.views(images.permute(0, 3, 1, 2))
        return self.model(self.model.extractor.normalize(views / 255 if views.dtype == torch.uint8 else views))

    def views(self, images: Tensor) -> Tensor:
        height, width = self.view_shape
        resized: list[Any] = [height, width]
        if self.crop:
            full_height, full_width = images.shape[-2:]
            resized = [
                torch.sym_max(height, full_height * width // full_width),
                torch.sym_max(width, full_width * height // full_height),
            ]
        images = F.interpolate(images, resized, mode="bilinear", align_corners=False, antialias=True)
        if self.crop:
            top, left = (_half_to_even(full - seen) for full, seen in zip(resized, (height, width), strict=True))
            rows, columns = torch.arange(height) + top, torch.arange(width) + left  # slices would fix which side is cut
            images = images.index_select(2, rows).index_select(3, columns)
        return images


def _half_to_even(n: Any) -> Any:
    return n // 2 + (n % 2) * ((n // 2) % 2)


def _exported(images: _Images, detector: Any, dtype: torch.dtype) -> torch.export.ExportedProgram:
    smallest = images.model.extractor.stride
    side = 2 * max(images.view_shape) + smallest
    example = torch.zeros(2, side, side + 1, 3, dtype=dtype, device="cpu")
    sides = {i: Dim(name, min=smallest, max=_LARGEST_SIDE) for i, name in ((1, "height"), (2, "width"))}
    try:
        return torch.export.export(images, (example,), dynamic_shapes=({0: Dim("n", min=1), **sides},))
    except Exception as error:
        raise refusal(detector, "torch.export", error) from error
