"""A fitted detector from the document and the tensors of a file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skpbas._features.reading import NetworkPlan, Reading
from skpbas._features.recognition import TrainingImages
from skpbas._inputs.image_statistics import GoodStatistics
from skpbas._training.completion import scorer_precision
from skpbas._training.container import tensor_bytes
from skpbas.core.backbones import FeatureExtractor, build_backbone, is_timm_name
from skpbas.core.backbones.factory import backbone_of_tensors
from skpbas.core.backbones.levels import HookedModule
from skpbas.core.backbones.timm_networks import TimmNetwork
from skpbas.core.coreset import Coreset
from skpbas.core.model import PBASModel
from skpbas.core.networks import Discriminator, Projector
from skpbas.core.patch_scores import DiscriminatorScorer, DistanceScorer, FusedScorer, PatchScorer, SummedScorer
from skpbas.core.tiling import Tiling
from skpbas.core.whole_images import WholeImages
from skpbas.errors import FileFormatError, WeightsError

_STRIDES = {"layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}  # pixels per position, of networks with names
_LARGEST_STRIDE = 64  # of timm's


class Tensors:
    """Tensors of a file, each of which is taken once, with the shape and the type that it must have."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._left = dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def shape(self, name: str, n_dimensions: int) -> tuple[int, ...]:
        """Return the shape of a tensor that is not taken yet."""
        if name not in self._left:
            raise FileFormatError(f"the tensor {name!r} is missing")
        if self._left[name].ndim != n_dimensions:
            raise FileFormatError(f"the tensor {name!r} has {self._left[name].ndim} dimensions, not {n_dimensions}")
        return tuple(self._left[name].shape)

    def take(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """Return a tensor of this type and shape, of finite numbers."""
        found = self.shape(name, len(shape))
        tensor = self._left.pop(name)
        if tensor.dtype != dtype or found != shape:
            raise FileFormatError(
                f"the tensor {name!r} has type {tensor.dtype} and shape {found}; expected {dtype} and {shape}"
            )
        if not tensor.isfinite().all():
            raise FileFormatError(f"the tensor {name!r} has values that are not finite")
        if name.endswith("running_var") and (tensor < 0).any():
            raise FileFormatError(f"the tensor {name!r} has negative variances")
        return tensor

    def fill(self, module: nn.Module, prefix: str) -> None:
        """Load the state of a module."""
        state = {key: self.take(prefix + key, v.dtype, *v.shape) for key, v in module.state_dict().items()}
        module.load_state_dict(state)

    def with_prefix(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin so, by the rest of their names."""
        names = [name for name in self._left if name.startswith(prefix)]
        return {
            name.removeprefix(prefix): self.take(name, self._left[name].dtype, *self._left[name].shape)
            for name in names
        }

    def end(self) -> None:
        """Check that all have been taken."""
        if self._left:
            raise FileFormatError(f"there is an unknown tensor {min(self._left)[:60]!r}")


def extractor_from(network: dict[str, Any], tensors: Tensors, module: nn.Module | None) -> FeatureExtractor:
    """Return the feature extractor on the CPU, with its weights from the file or from where ``fit`` has them from.

    Raises
    ------
    FileFormatError
        Tensors that are missing or do not fit.
    WeightsError
        The weights are not those that the detector was fitted with.
    WeightsUnavailableError
        torchvision's or timm's weights are neither cached nor downloadable.
    ImportError
        It needs timm, which is not installed.
    """
    name, layers, d = network["backbone"], network["layers"], network["feature_dim"]
    if tensors.shape("projector.linear.weight", 2) != (d, d):
        raise FileFormatError("the projector does not fit the features")
    (height, width), (_, rows, columns) = network["input_shape"], network["level_shapes"][0]
    stride = _LARGEST_STRIDE if is_timm_name(name) else _STRIDES.get(layers[0], 1)
    too_large = name != "module" and (height > stride * rows or width > stride * columns)
    if too_large or tensors.shape("center", 2) != (rows * columns, d):  # before any pass of the network
        raise FileFormatError("the center set does not fit the network's input")
    if network["stored"]:
        try:
            backbone = backbone_of_tensors(name, layers, tensors.with_prefix("backbone."))
        except ValueError as error:
            raise FileFormatError(str(error)) from error
    else:
        given = module if module is not None else name
        if is_timm_name(name):
            given = f"timm:{network['weights_name']}"  # with the tag that was the default in fit
        backbone = build_backbone(given, "imagenet", layers, torch.Generator("cpu").manual_seed(0))
    extractor = FeatureExtractor(
        backbone,
        image_size=(network["input_shape"][0], network["input_shape"][1]),
        patch_size=network["patch_size"],
        feature_dim=network["feature_dim"],
        precision=torch.bfloat16 if network["precision"] == "bfloat16" else torch.float32,
        scales=network["scales"],
    )
    if backbone_digest(extractor) != network["sha256"]:
        if network["stored"]:
            raise FileFormatError("the backbone's tensors do not match their digest")
        source = {"module": "the tensors of the module given as backbone", "embedded": "the weights of this skpbas"}
        library = "timm" if is_timm_name(name) else "torchvision"
        found = source.get(name, f"{library}'s weights {network['weights_name']}")
        remedy = "give the module that it was fitted with" if name == "module" else "save it with include_backbone=True"
        raise WeightsError(f"{found} are not those that the detector was fitted with: {remedy}")
    if [list(shape) for shape in extractor.level_shapes] != network["level_shapes"]:
        if name != "module":
            raise FileFormatError("the shapes of the feature maps do not fit the network")
        raise WeightsError("the feature maps of the module have other shapes than when the detector was fitted")
    return extractor


def fitted_from(
    document: dict[str, Any], tensors: Tensors, extractor: FeatureExtractor, device: torch.device
) -> dict[str, Any]:
    """Return the fitted attributes, on a device."""
    network, fitted, how = document["network"], document["fitted"], document["reading"]
    good = GoodStatistics.from_note(document["good_statistics"])
    if good is None:
        raise FileFormatError("the statistics of the good images are not valid")
    view_shape = (how["view_shape"][0], how["view_shape"][1])
    tiling = Tiling(view_shape, max(extractor.image_size)) if how["tiled"] else None
    if (view_shape if tiling is None else tiling.tile_shape) != extractor.image_size:
        raise FileFormatError("the network's input is no tile of the images")
    projector, discriminator, center, scorer = scorer_from(document["scorer"], tensors, extractor, device)
    widths = [channels for channels, _, _ in extractor.part_shapes[: extractor.n_levels]]
    whole_images = _whole_images(tensors, 2 * sum(widths))
    n, n_images = fitted["n_samples_fit"], tensors.shape("fingerprints", 2)[0]
    known = tensors.take("fingerprints", torch.uint8, n_images, 20).numpy()
    scores = tensors.take("training_scores", torch.float64, n).numpy()
    n_terms = len(set(fitted["loss_terms"]))
    curves = tensors.take("loss_curve", torch.float64, n_terms, fitted["n_iter"]).tolist()
    (n_outliers,) = tensors.shape("training_outliers", 1)
    outliers = tensors.take("training_outliers", torch.int64, n_outliers).numpy().astype(np.intp)
    plan = NetworkPlan(
        network["backbone"],
        network["weights"],
        tuple(network["layers"]),
        network["patch_size"],
        tuple(network["scales"]),
        document["scorer"]["smoothing_sigma"],
    )
    reading = Reading(
        view_shape,
        how["resize"],
        how["precision"],
        how["aspect"],
        TrainingImages(row.tobytes().hex() for row in known),
        tiling,
        how["ignored_share"],
        good,
        plan,
    )
    of_model = None if tiling is None else Tiling(view_shape, max(extractor.image_size))
    model = PBASModel(extractor, scorer, plan.smoothing_sigma, of_model, whole_images).to(device)
    scorer.precision = scorer_precision(scorer, reading.precision, device)
    tensors.end()
    return {
        "model_": model,
        "feature_extractor_": extractor,
        "center_": center.to(device),
        "projector_": projector.to(device),
        "discriminator_": None if discriminator is None else discriminator.to(device),
        "offset_": fitted["offset"],
        "map_threshold_": fitted["map_threshold"],
        "training_scores_": scores,
        "training_outliers_": outliers,
        "n_iter_": fitted["n_iter"],
        "loss_curve_": dict(zip(fitted["loss_terms"], curves, strict=True)),
        "device_": device,
        "n_samples_fit_": n,
        "map_shape_": view_shape,
        "good_statistics_": good,
        "_reading": reading,
        "_opened": True,
    }


def scorer_from(
    about: dict[str, Any], tensors: Tensors, extractor: FeatureExtractor, device: torch.device
) -> tuple[Projector, Discriminator | None, Tensor, PatchScorer]:
    """Return the networks, the center set and the patch scorer, which may still be on the CPU."""
    d, aggregators = extractor.feature_dim, extractor.aggregators
    unused = torch.Generator("cpu").manual_seed(0)
    center = tensors.take("center", torch.float32, math.prod(extractor.grid_shape), d)
    projector = Projector(d, unused)
    tensors.fill(projector, "projector.")
    discriminator = None
    if "discriminator.output.weight" in tensors:
        n_heads, hidden_dim = tensors.shape("discriminator.output.weight", 2)
        if tensors.shape("discriminator.hidden.weight", 2) != (n_heads * hidden_dim, d):
            raise FileFormatError("the layers of the discriminator do not fit each other")
        discriminator = Discriminator(d, hidden_dim, unused, n_heads)
        tensors.fill(discriminator, "discriminator.")
        discriminator.eval()
    projector.eval()
    if about["kind"] == "distance":
        scorer: PatchScorer = DistanceScorer(aggregators[0], projector, center, about["scale"])
    elif discriminator is None:
        raise FileFormatError("there is no discriminator")
    elif about["kind"] == "discriminator":
        scorer = DiscriminatorScorer(aggregators[0], projector, discriminator)
    else:
        prefixes = ["scorer."] if len(aggregators) == 1 else [f"scorer.members.{i}." for i in range(len(aggregators))]
        members = [
            FusedScorer(
                aggregator, projector, discriminator, _coreset(tensors, prefix, d, device), temperature=temperature
            )
            for aggregator, prefix, temperature in zip(aggregators, prefixes, about["temperatures"], strict=True)
        ]
        scorer = members[0] if len(members) == 1 else SummedScorer(members)
    _fill_scorer(scorer, tensors)
    return projector, discriminator, center, scorer


def _coreset(tensors: Tensors, prefix: str, d: int, device: torch.device) -> Coreset:
    n, q = tensors.shape(f"{prefix}coreset.exemplars", 2)
    if not n or not q:
        raise FileFormatError("there are no exemplars")
    parts = (
        tensors.take(f"{prefix}coreset.mean", torch.float32, d),
        tensors.take(f"{prefix}coreset.directions", torch.float32, q, d),
        tensors.take(f"{prefix}coreset.exemplars", torch.float32, n, q),
        tensors.take(f"{prefix}coreset.image_index", torch.int64, n),
    )
    return Coreset(*(part.to(device) for part in parts))  # what follows from them is computed there, as in fit


def _fill_scorer(scorer: PatchScorer, tensors: Tensors) -> None:
    """Set the tensors of a scorer that the file has, which must be all that do not follow from others."""
    derived = derived_names(scorer)
    for key, value in scorer.state_dict().items():
        name = f"scorer.{key}"
        path, _, leaf = key.rpartition(".")
        if path.endswith("coreset") or (name in derived and name not in tensors):
            continue
        shape = tensors.shape("training_scores", 1) if leaf == "training_scores" else tuple(value.shape)
        if not all(shape):
            raise FileFormatError(f"the tensor {name!r} is empty")
        taken = tensors.take(name, value.dtype, *shape)
        parent = scorer.get_submodule(path)
        setattr(parent, leaf, nn.Parameter(taken, requires_grad=False) if leaf in parent._parameters else taken)


def _whole_images(tensors: Tensors, width: int) -> WholeImages:
    (n, _), floats = tensors.shape("whole_images.known", 2), torch.float32
    if not n:
        raise FileFormatError("no training image is described as a whole")
    whole_images = WholeImages(
        tensors.take("whole_images.center", floats, width),
        tensors.take("whole_images.known", floats, n, width),
        tensors.take("whole_images.image_index", torch.int64, n),
        *(0.0, 0.0, 0.0),
    )
    for name in ("radius", "unit", "ignored"):
        setattr(whole_images, name, tensors.take(f"whole_images.{name}", floats))
    return whole_images


def backbone_digest(extractor: FeatureExtractor) -> str:
    """Return the SHA-256 of the tensors of an extractor's backbone: names, types, shapes and values.

    Of a module that the user gave, its buffers that are not in its state dict too.
    """
    backbone = extractor.backbone
    if isinstance(backbone, HookedModule) and not isinstance(backbone, TimmNetwork):
        tensors = {**dict(backbone.module.named_parameters()), **dict(backbone.module.named_buffers())}
    else:
        tensors = backbone.state_dict()
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{len(name)} {name} {tensor.dtype} {tuple(tensor.shape)} ".encode("utf-8", "surrogatepass"))
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def derived_names(scorer: PatchScorer) -> set[str]:
    """Return the names of tensors that follow from others, unless a scale has networks that are not stored."""
    found = set()
    for key in scorer.state_dict():
        first = not key.startswith("members.") or key.startswith("members.0.")
        of_networks = ".hidden.parts." in f".{key}" or key.endswith("output") or key.startswith("projected.parts.")
        if ".reduced.parts." in f".{key}" or (first and of_networks) or key == "center":
            found.add(f"scorer.{key}")
    return found
