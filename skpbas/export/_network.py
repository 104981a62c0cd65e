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
from skpbas.runtime._providers import FORMAT

_NOT_SETTINGS = ("device", "memory", "n_jobs", "random_state", "verbose", "weights")  # of the machine, or paths


def exportable(detector: Any) -> Any:
    """Return what a detector is now, or raise because it cannot be exported."""
    if not hasattr(type(detector), "_level_maps"):
        raise TypeError(f"expected a PBASDetector, got {type(detector).__name__}: export its detector_")
    check_is_fitted(detector)
    now = detector._snapshot()
    if now._reading.ignored_share:
        raise ExportError(
            "the detector was fitted on images with ignored regions (skpbas.masks.ignoring), which the graph does not "
            "know: paint the regions in one color instead, in fit and before the exported detector"
        )
    return now


def pixel_type(detector: Any) -> str:
    """Return the type of the graph's images: "uint8" if those of ``fit`` had 8 bits, otherwise "float32"."""
    return "uint8" if set(detector.good_statistics_.kinds) == {"uint8"} else "float32"


def refusal(detector: Any, exporter: str, error: Exception) -> ExportError:
    """Return the error that names the backbone and why it cannot be exported."""
    backbone = detector.backbone if isinstance(detector.backbone, str) else type(detector.backbone).__name__
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return ExportError(
        f"backbone {backbone}: {exporter} cannot export it: {type(cause).__name__}: {lines[0] if lines else error!r}"
    )


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
        self._inner: list[Tensor] = []
        for name, module in model.patch_scorer.named_modules():
            if isinstance(module, FusedScorer):
                for part in (module.discriminator, module.reduced, module.coreset):
                    part.register_forward_hook(lambda _module, _inputs, output: self._inner.append(output))
                self.borders += [f"inner_{kind}_{name or 0}" for kind in ("logits", "points", "nearest")]

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        if self.of_tiles:
            views = views.permute(0, 3, 1, 2).float()
        levels = model.extractor.levels(model.extractor.normalize(views / 255 if self.of_bytes else views))
        self._inner.clear()
        scores, descriptions = model.evidence(levels)
        borders = (*levels, *self._inner)
        if not self.of_tiles:
            return model.image_scores(scores, descriptions), model.anomaly_maps(scores), *borders
        of_tiles = model.patch_scorer.image_scores(scores, model.extractor.grid_shape)
        return of_tiles, model.patch_scorer.maps(scores, model.renderer), descriptions, *borders


def float32_copy(model: PBASModel) -> PBASModel:
    """Return a copy of a model on the CPU, with all its products in float32."""
    copied = copy.deepcopy(model).cpu().eval()
    copied.extractor.precision = copied.patch_scorer.precision = torch.float32
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)  # torch.export warns of others
    return copied


def metadata_of(detector: Any, network: PBASModel, dtype: str, unsure_rate: float) -> dict[str, Any]:
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
