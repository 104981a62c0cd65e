"""What a saved detector consists of: a document that JSON can hold, and tensors.

Everything that is computed from something else that is stored is computed again. The maps of a scorer that are folded
from projector and discriminator are stored only if that does not give them to the last bit.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from skpbas._features.reading import NetworkPlan
from skpbas._training.container import tensor_bytes
from skpbas._training.document import OF_THE_MACHINE, check_parameters
from skpbas._training.restoring import Tensors, backbone_digest, derived_names, scorer_from
from skpbas._training.sealing import versions
from skpbas.core.backbones.timm_networks import TimmNetwork
from skpbas.core.patch_scores import DiscriminatorScorer, DistanceScorer, FusedScorer, PatchScorer, SummedScorer


def contents_of(detector: Any, *, include_backbone: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the document and the tensors of a fitted detector.

    Raises
    ------
    ValueError
        Parameters were changed after the fit so that they no longer describe the detector, or cannot be stored.
    """
    reading, model, extractor = detector._reading, detector.model_, detector.feature_extractor_
    plan = reading.plan or NetworkPlan.of(detector)
    stored = plan.weights in ("file", "random") or (include_backbone and plan.backbone != "module")
    scorer, kind = model.patch_scorer, _kind_of(model.patch_scorer)
    members = _members(scorer)
    known = detector._reading.training.fingerprints()
    document = {
        "kind": "PBASDetector",
        "versions": dict(versions()),
        "parameters": _parameters_of(detector, plan),
        "network": {
            "backbone": plan.backbone,
            "weights": plan.weights,
            "weights_name": _weights_name(plan, extractor.backbone),
            "stored": stored,
            "sha256": backbone_digest(extractor),
            "layers": list(extractor.backbone.layers),
            "patch_size": plan.patch_size,
            "feature_dim": extractor.feature_dim,
            "scales": list(plan.scales),
            "input_shape": list(extractor.image_size),
            "level_shapes": [list(shape) for shape in extractor.level_shapes],
            "precision": str(extractor.precision).removeprefix("torch."),
        },
        "reading": {
            "view_shape": list(reading.view_shape),
            "tiled": reading.tiling is not None,
            "resize": reading.resize,
            "precision": reading.precision,
            "aspect": None if reading.aspect is None else float(reading.aspect),
            "ignored_share": float(reading.ignored_share),
        },
        "scorer": {
            "kind": kind,
            "temperatures": [float(member.temperature) for member in members],
            "scale": float(scorer.scale) if isinstance(scorer, DistanceScorer) else None,
            "smoothing_sigma": plan.smoothing_sigma,
        },
        "fitted": {
            "offset": float(detector.offset_),
            "map_threshold": float(detector.map_threshold_),
            "n_iter": int(detector.n_iter_),
            "n_samples_fit": int(detector.n_samples_fit_),
            "loss_terms": list(detector.loss_curve_),
        },
        "good_statistics": detector.good_statistics_.as_note(),
    }
    tensors = {
        "center": detector.center_,
        "training_scores": torch.from_numpy(np.ascontiguousarray(detector.training_scores_, dtype=np.float64)),
        "training_outliers": torch.from_numpy(np.ascontiguousarray(detector.training_outliers_, dtype=np.int64)),
        "fingerprints": torch.tensor([list(bytes.fromhex(one)) for one in known], dtype=torch.uint8, device="cpu"),
        "loss_curve": torch.tensor(list(detector.loss_curve_.values()), dtype=torch.float64, device="cpu"),
    }
    for name, module in (("projector", detector.projector_), ("discriminator", detector.discriminator_)):
        if module is not None:
            tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    of_scorer = {f"scorer.{key}": value for key, value in scorer.state_dict().items()}
    derived = derived_names(scorer)
    tensors |= {key: value for key, value in of_scorer.items() if key not in derived}
    tensors |= {f"whole_images.{key}": value for key, value in model.whole_images.state_dict().items()}
    tensors = {key: value.detach().cpu() for key, value in tensors.items()}
    again = scorer_from(document["scorer"], Tensors(tensors), extractor, torch.device("cpu"))[3].state_dict()
    for key in derived:
        value = of_scorer[key].detach().cpu()
        if not _same_bits(value, again[key.removeprefix("scorer.")]):
            tensors[key] = value
    if stored:
        state = extractor.backbone.state_dict()
        tensors |= {f"backbone.{key}": value.detach().cpu() for key, value in state.items()}
    return document, tensors


def _parameters_of(detector: Any, plan: NetworkPlan) -> dict[str, Any]:
    """Return the parameters as JSON can hold them, checked."""
    check_parameters(detector)
    if isinstance(detector.backbone, nn.Module) and plan.backbone != "module":
        raise ValueError(f"backbone was set to a module after the fit: set it to {plan.backbone!r} again before saving")
    parameters = {
        name: _plain(name, value)
        for name, value in detector.get_params(deep=False).items()
        if name not in (*OF_THE_MACHINE, "backbone", "random_state")
    }
    seed, backbone = detector.random_state, detector.backbone
    parameters["random_state"] = int(seed) if isinstance(seed, (int, np.integer)) else None
    parameters["backbone"] = None if isinstance(backbone, nn.Module) else str(backbone)
    return parameters


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(name, one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value!r} cannot be saved: give a finite number")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"{name}={value!r} cannot be saved: give numbers, text or lists of them")


def _weights_name(plan: NetworkPlan, backbone: nn.Module) -> str | None:
    if plan.weights != "imagenet":
        return None
    if isinstance(backbone, TimmNetwork):
        return backbone.weights_name
    import torchvision

    return str(torchvision.models.get_model_weights(plan.backbone)["IMAGENET1K_V1"])


def _kind_of(scorer: PatchScorer) -> str:
    kinds = {DiscriminatorScorer: "discriminator", DistanceScorer: "distance"}
    return kinds.get(type(scorer), "fused")


def _members(scorer: PatchScorer) -> list[FusedScorer]:
    if isinstance(scorer, SummedScorer):
        return cast("list[FusedScorer]", list(scorer.members))
    return [scorer] if isinstance(scorer, FusedScorer) else []


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and tensor_bytes(a) == tensor_bytes(b)
