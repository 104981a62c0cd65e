"""The document of a saved detector: what it has, of which type and within which bounds."""

from __future__ import annotations

import math
from typing import Any

from skpbas._inputs.parameters import PRECISIONS, check_layers, check_scales, height_and_width, odd
from skpbas._training.schema import boolean, check_section, list_of, number, one_of, optional, sha256, text, whole
from skpbas.core.backbones import TORCHVISION_BACKBONES, is_timm_name
from skpbas.errors import FileFormatError

OF_THE_MACHINE = ("device", "memory", "n_jobs", "verbose")
"""Parameters that are not stored."""

_LARGEST_INPUT = 2**23  # pixels
_SIDE = whole(1, 8192)
_PIXELS = list_of(_SIDE, 2, 2)
_VIEW = list_of(whole(1, 2**20), 2, 2)
_LEVELS = whole(1, 64)

_ONE_OF_OURS = one_of(*TORCHVISION_BACKBONES, "embedded", "module")

_SECTIONS = {
    "network": {
        "backbone": lambda value: is_timm_name(value) or _ONE_OF_OURS(value),
        "weights": one_of("imagenet", "file", "random", "package", "given"),
        "weights_name": optional(text),
        "stored": boolean,
        "sha256": sha256,
        "layers": list_of(text, 1, 64),
        "patch_size": whole(1, 63),
        "feature_dim": whole(1, 2**16),
        "scales": list_of(number(0, 1), 1, 16),
        "input_shape": _PIXELS,
        "level_shapes": list_of(list_of(whole(1, 2**20), 3, 3), 1, 1024),
        "precision": one_of("float32", "bfloat16"),
    },
    "reading": {
        "view_shape": _VIEW,
        "tiled": boolean,
        "resize": one_of("aspect", "stretch", "crop"),
        "precision": one_of(*PRECISIONS),
        "aspect": optional(number(1e-6, 1e6)),
        "ignored_share": number(0, 1),
    },
    "scorer": {
        "kind": one_of("fused", "discriminator", "distance"),
        "temperatures": list_of(number(1e-6, 1e6), 0, 16),
        "scale": optional(number()),
        "smoothing_sigma": number(0, 256),
    },
    "fitted": {
        "offset": number(),
        "map_threshold": number(),
        "n_iter": whole(),
        "n_samples_fit": whole(1),
        "loss_terms": list_of(text, 1, 16),
    },
}


def check_document(document: dict[str, Any]) -> None:
    """Check all of a document but the parameters, which the detector checks.

    Raises
    ------
    FileFormatError
        It is not one of this format; the message names the entry.
    """
    others = {"kind", "versions", "parameters", "good_statistics"}
    check_section(document, "description", dict.fromkeys(others | _SECTIONS.keys(), lambda _: True))
    if document["kind"] != "PBASDetector":
        raise FileFormatError(f"it holds {str(document['kind'])[:60]!r}, not a PBASDetector")
    written = document["versions"]
    if not isinstance(written, dict) or not all(map(text, written.values())):
        raise FileFormatError("the versions are not text")
    for name, checks in _SECTIONS.items():
        check_section(document[name], name, checks)
    network, scorer, height_width = document["network"], document["scorer"], document["network"]["input_shape"]
    of_backbone = {"module": ("given",), "embedded": ("package",)}
    of_weights = {"file": (True,), "random": (True,), "given": (False,)}
    of_timm = is_timm_name(network["backbone"]) and network["weights"] == "imagenet"
    n_scales, kind = len(network["scales"]), scorer["kind"]
    fits = {
        "weights": network["weights"] in of_backbone.get(network["backbone"], ("imagenet", "file", "random")),
        "weights_name": not of_timm or is_timm_name(f"timm:{network['weights_name']}"),
        "stored": network["stored"] in of_weights.get(network["weights"], (False, True)),
        "input_shape": math.prod(height_width) <= _LARGEST_INPUT,
        "scales": kind == "fused" or n_scales == 1,
        "patch_size": network["patch_size"] % 2 == 1,
        "feature_dim": network["patch_size"] ** 2 * network["feature_dim"] <= _LARGEST_INPUT,
        "temperatures": len(scorer["temperatures"]) == (n_scales if kind == "fused" else 0),
        "scale": (scorer["scale"] is not None) == (kind == "distance"),
    }
    for name, fit in fits.items():
        if not fit:
            raise FileFormatError(f"{name!r} has a value that does not fit the others")


def parameters_from(document: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Return the constructor's parameters; ``names``: all of them. The detector has yet to check their values."""
    parameters = document["parameters"]
    check_section(parameters, "parameters", dict.fromkeys(names - {*OF_THE_MACHINE}, lambda _: True))
    return {name: tuple(value) if isinstance(value, list) else value for name, value in parameters.items()}


def check_parameters(detector: Any) -> None:
    """Check the parameters as ``fit`` does."""
    detector._validate_params()
    if not all(isinstance(layer, str) for layer in check_layers(detector.layers)):
        raise ValueError("layers: expected names")
    check_scales(detector.scales, detector.patch_score, detector.synthesis)
    odd(detector.patch_size)
    height_and_width(detector.image_size)
