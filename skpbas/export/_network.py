"""What an exported graph computes, and what it says about itself."""

from __future__ import annotations

import base64
import copy
import platform
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

import skpbas
from skpbas.core.model import PBASModel
from skpbas.core.patch_scores import FusedScorer
from skpbas.core.whole_images import FULL, HARMLESS
from skpbas.errors import ExportError
from skpbas.export._ignored_pixels import Regions, limits
from skpbas.runtime._providers import FORMAT

LARGEST_SIDE = 2**15
"""Of images, in pixels."""

TESTED_TORCH = (2, 14)
"""Version from which every export is tested; torch 2.7 and 2.9 refuse some or all."""

LARGEST_BATCH = 2**31 - 1
"""Images of a batch; torch 2.7 refuses a number without a limit."""

_NOT_SETTINGS = ("device", "memory", "n_jobs", "random_state", "verbose", "weights")  # of the machine, or paths


def exportable(detector: Any) -> Any:
    """Return what a detector is now, or raise because it cannot be exported."""
    if not hasattr(type(detector), "_level_maps"):
        raise TypeError(f"expected a PBASDetector, got {type(detector).__name__}: export its detector_")
    check_is_fitted(detector)
    return detector._snapshot()


def takes_ignored(detector: Any, ignored: bool | None) -> bool:
    """Return whether the graph of a detector takes ignored regions; None: if images of ``fit`` had some."""
    if ignored is not None and not isinstance(ignored, (bool, np.bool_)):
        raise ValueError(f"ignored={ignored!r}: choose True, False or None")
    return bool(detector._reading.ignored_share if ignored is None else ignored)


def regions_of(detector: Any, network: PBASModel) -> Regions:
    """Return what a network says of views with ignored regions, for a detector that it was copied from."""
    reading = detector._reading
    crop = reading.resize == "crop"
    return Regions(network, reading.view_shape, crop=crop, largest_share=reading.ignored_share)


def pixel_type(detector: Any) -> str:
    """Return the type of the graph's images: "uint8" if those of ``fit`` had 8 bits, otherwise "float32"."""
    return "uint8" if set(detector.good_statistics_.kinds) == {"uint8"} else "float32"


def refusal(detector: Any, exporter: str, error: Exception) -> ExportError:
    """Return the error that names the backbone and why it cannot be exported."""
    backbone = detector.backbone if isinstance(detector.backbone, str) else type(detector.backbone).__name__
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    reason = f"{type(cause).__name__}: {lines[0] if lines else error!r}"
    if tuple(map(int, torch.__version__.split(".")[:2])) < TESTED_TORCH:
        reason += f"; this is torch {torch.__version__}: update to {'.'.join(map(str, TESTED_TORCH))} or newer first"
    return ExportError(f"backbone {backbone}: {exporter} cannot export it: {reason}")


class _Outputs:
    """Outputs of inner modules in one pass; torch.export compares a list that an attribute holds with that before."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def keep(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Be a module's forward hook."""
        self.kept.append(output)


class Views(nn.Module):
    """What the graph computes from views (n, 3, h, w), float32, in [0, 255] or [0, 1], or from tiles (n, h, w, 3).

    Behind the outputs follow the values at which a runtime may divide the graph: what is computed up to them may be
    rounded to few bits. These are the backbone's feature maps and, for the fused score, what it takes from them.
    """

    def __init__(self, model: PBASModel, *, of_bytes: bool) -> None:
        super().__init__()
        self.model, self.of_bytes, self.of_tiles = model, of_bytes, model.tiling is not None
        self.outputs = ["score", "map", *(["description"] if self.of_tiles else [])]
        self.borders = [f"level_{i}" for i in range(len(model.extractor.level_shapes))]
        self._inner = _Outputs()
        for name, module in model.patch_scorer.named_modules():
            if isinstance(module, FusedScorer):
                for part in (module.discriminator, module.reduced, module.coreset):
                    part.register_forward_hook(self._inner.keep)
                self.borders += [f"inner_{kind}_{name or 0}" for kind in ("logits", "points", "nearest")]

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        levels = self._levels(views)
        scores, descriptions = self.model.evidence(levels)
        borders = (*levels, *self._inner.kept)
        if not self.of_tiles:
            return self.model.image_scores(scores, descriptions), self.model.anomaly_maps(scores), *borders
        return *self._of_tiles(scores), descriptions, *borders

    def _levels(self, views: Tensor) -> list[Tensor]:
        """Return the backbone's feature maps."""
        self._inner.kept.clear()
        if self.of_tiles:
            views = views.permute(0, 3, 1, 2).float()
        return self.model.extractor.levels(self.model.extractor.normalize(views / 255 if self.of_bytes else views))

    def _of_tiles(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores (n,) and maps (n, h, w) of tiles with these patch scores (n, P)."""
        scorer = self.model.patch_scorer
        return scorer.image_scores(scores, self.model.extractor.grid_shape), scorer.maps(scores, self.model.renderer)


class ViewsWithRegions(Views):
    """:class:`Views` of whole images, and ``ignored`` (n, H, W), bool: their pixels that count for nothing.

    ``ignored`` has the size of the images, from which that of the views may differ. Besides the map, which is 0 where
    pixels do not count, there is that without zeros, ``unerased``, from which other sizes are interpolated.
    """

    def __init__(self, regions: Regions, *, of_bytes: bool) -> None:
        super().__init__(regions.model, of_bytes=of_bytes)
        self.regions = regions
        self.outputs += ["unerased", "counted"]

    def forward(self, views: Tensor, ignored: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        at_views, erased, shares = self.regions.of_masks(ignored)
        levels = self._levels(self.regions.filled(views, at_views, shares, of_bytes=self.of_bytes))
        scores, maps, counted = self.regions.answers(levels, at_views, shares)
        return scores, maps.masked_fill(erased, 0), maps, counted, *levels, *self._inner.kept


class TilesWithRegions(Views):
    """:class:`Views` of tiles, and ``ignored`` (n, h, w), bool, their pixels that count for nothing.

    These pixels are filled already, and they include their neighbors. Patches that do not count have the score ``fill``
    (n,): the mean of those of their image that do, of which ``sum`` and ``counted`` tell.
    """

    def __init__(self, regions: Regions, *, of_bytes: bool) -> None:
        super().__init__(regions.model, of_bytes=of_bytes)
        self.regions = regions
        self.outputs += ["sum", "counted"]

    def forward(self, views: Tensor, ignored: Tensor, fill: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        levels = self._levels(views)
        scores, descriptions, of_patches, counted = self.regions.evidence(levels, ignored)
        total = scores.masked_fill(of_patches, 0).sum(1)
        scores = torch.where(of_patches, fill[:, None], scores)
        return *self._of_tiles(scores), descriptions, total, counted, *levels, *self._inner.kept


def float32_copy(model: PBASModel) -> PBASModel:
    """Return a copy of a model on the CPU, with all its products in float32."""
    copied = copy.deepcopy(model).cpu().eval()
    copied.extractor.precision = copied.patch_scorer.precision = torch.float32
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)  # torch.export warns of others
    return copied


def metadata_of(
    detector: Any, network: PBASModel, dtype: str, unsure_rate: float, *, with_ignored: bool
) -> dict[str, Any]:
    """Return what a runtime needs to know besides the graph, as JSON can hold it."""
    judge, reading, tiling = detector._judge(unsure_rate), detector._reading, network.tiling
    settings = {
        name: value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
        for name, value in detector.get_params(deep=False).items()
        if name not in _NOT_SETTINGS and name != "backbone"
    }
    backbone = detector.backbone if isinstance(detector.backbone, str) else type(detector.backbone).__name__
    metadata = {
        "format": FORMAT,
        "dtype": dtype,
        "resize": reading.resize,
        "map_shape": list(reading.view_shape),
        "smallest_side": network.extractor.stride,
        "offset": float(judge.offset),
        "unsure_offset": float(judge.unsure_offset),
        "unsure_rate": float(unsure_rate),
        "map_threshold": float(detector.map_threshold_),
        "normal_scores": judge.normal_scores.tolist(),
        "aspect": reading.aspect,
        "good_statistics": reading.good.as_note(),
        "versions": {"skpbas": skpbas.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "settings": {"backbone": backbone, **settings},
    }
    if with_ignored:
        fillable, comparable = limits(reading.ignored_share)
        extractor = network.extractor
        grids = [shape[1:] for shape in extractor.level_shapes[:: extractor.n_levels]]
        metadata["ignored"] = {"fillable": fillable, "comparable": comparable, "grids": grids}
    if tiling is not None:
        metadata["tiles"] = {
            "shape": list(tiling.tile_shape),
            "tops": tiling.tops,
            "lefts": tiling.lefts,
            "row_weights": _packed(tiling.row_weights),
            "column_weights": _packed(tiling.column_weights),
        }
        if (whole := network.whole_images) is not None:
            metadata["whole_images"] = {
                "center": _packed(whole.center),
                "known": _packed(whole.known),
                "free": HARMLESS * float(whole.radius),
                "slope": float(whole.unit) / ((FULL - HARMLESS) * float(whole.radius)),
            }
    return metadata


def _packed(values: Tensor) -> dict[str, Any]:
    """Return float32 values as JSON can hold them."""
    array = values.detach().numpy().astype("<f4")
    return {"shape": list(array.shape), "float32": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()}
