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
from skpbas.export._ignored_pixels import Regions, resized_shape, seen_positions
from skpbas.export._network import (
    LARGEST_BATCH,
    LARGEST_SIDE,
    exportable,
    float32_copy,
    metadata_of,
    pixel_type,
    refusal,
    regions_of,
    takes_ignored,
)

METADATA = "skpbas.json"
"""Name of the extra file with what :func:`~skpbas.export.to_onnx` writes as metadata."""


def to_torch(
    detector: Any, path: str | PathLike[str], *, unsure_rate: float = UNSURE_RATE, ignored: bool | None = None
) -> None:
    """Write a fitted detector as a program of ``torch.export``, from images to scores and anomaly maps, in float32.

    The file needs torch and nothing else: no skpbas and no pickled code. The program takes ``images`` (n, H, W, 3),
    RGB, of any n, H and W: uint8 if all images of ``fit`` were, otherwise float32 in [0, 1]. It returns the scores
    (n,), minus ``score_samples``: higher is more anomalous; and the anomaly maps (n, h, w) at model size. Resizing,
    normalization, tiles and the evidence of whole images are part of it.

    With ``ignored``, a second argument (n, H, W), bool, is True at the pixels of the images that count for nothing, as
    in :func:`skpbas.masks.ignoring`: maps are 0 there, and the score is NaN where nothing counts.

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
    ignored : bool or None, default=None
        Whether the program takes regions that count for nothing; None: if images of ``fit`` had some.

    Raises
    ------
    ValueError
        ``unsure_rate`` or ``ignored`` is none of the above.
    ExportError
        A backbone that cannot be exported; the message names it and the cause.
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
    with_ignored = takes_ignored(now, ignored)
    with callers_modes_left(grad=False):
        network = float32_copy(now.model_)
        dtype = pixel_type(now)
        kind = _ImagesWithRegions if with_ignored else _Images
        images = kind(regions_of(now, network)).eval()
        program = _exported(images, now, torch.uint8 if dtype == "uint8" else torch.float32)
        file = io.BytesIO()
        metadata = json.dumps(metadata_of(now, network, dtype, unsure_rate, with_ignored=with_ignored))
        torch.export.save(program, file, extra_files={METADATA: metadata})
    write_atomically(Path(path), file.getvalue())


class _Images(nn.Module):
    """What the program computes from images (n, H, W, 3): :meth:`Geometry.view` of each, and the model of all."""

    def __init__(self, regions: Regions) -> None:
        super().__init__()
        self.regions, self.model = regions, regions.model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        views = self.views(images.permute(0, 3, 1, 2))
        scores, maps = self.model(self.normalized(views))
        return scores, maps

    def normalized(self, views: Tensor) -> Tensor:
        return self.model.extractor.normalize(views / 255 if views.dtype == torch.uint8 else views)

    def views(self, images: Tensor) -> Tensor:
        view_shape, crop = self.regions.view_shape, self.regions.crop
        resized = resized_shape((images.shape[-2], images.shape[-1]), view_shape, crop=crop)
        images = F.interpolate(images, resized, mode="bilinear", align_corners=False, antialias=True)
        if crop:
            rows, columns = seen_positions(resized, view_shape)  # slices would fix which side is cut
            images = images.index_select(2, rows).index_select(3, columns)
        return images


class _ImagesWithRegions(_Images):
    """:class:`_Images`, and ``ignored`` (n, H, W), bool: their pixels that count for nothing."""

    def forward(self, images: Tensor, ignored: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        views, (at_views, erased, shares) = self.views(images.permute(0, 3, 1, 2)), self.regions.of_masks(ignored)
        of_bytes = views.dtype == torch.uint8
        seen = self.normalized(self.regions.filled(views.float(), at_views, shares, of_bytes=of_bytes).to(views.dtype))
        if (tiling := self.model.tiling) is not None:
            seen, at_views = tiling.cut(seen), tiling.cut(at_views[:, None])[:, 0]
        scores, maps, _ = self.regions.answers(self.model.extractor.levels(seen), at_views, shares)
        return scores, maps.masked_fill(erased, 0)


def _exported(images: _Images, detector: Any, dtype: torch.dtype) -> torch.export.ExportedProgram:
    smallest = images.model.extractor.stride
    side = 2 * max(images.regions.view_shape) + smallest
    example = torch.zeros(2, side, side + 1, 3, dtype=dtype, device="cpu")
    shape = {i: Dim(name, min=smallest, max=LARGEST_SIDE) for i, name in ((1, "height"), (2, "width"))}
    shape[0] = Dim("n", min=1, max=LARGEST_BATCH)
    inputs: tuple[Tensor, ...] = (example,)
    if isinstance(images, _ImagesWithRegions):
        inputs += (torch.zeros(example.shape[:3], dtype=torch.bool, device="cpu"),)
    try:
        return torch.export.export(images, inputs, dynamic_shapes=(shape,) * len(inputs))
    except Exception as error:
        raise refusal(detector, "torch.export", error) from error
