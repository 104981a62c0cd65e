"""Networks of the timm library: ``backbone="timm:NAME"``.

timm's networks are built by their own code and read by hooks on their modules. What differs between them is brought to
one form here: the size of the input, its normalization, and the layout of what a module returns.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from skpbas.core.backbones.building import with_drawn_weights
from skpbas.core.backbones.input_sizes import IMAGENET_MEAN, IMAGENET_STD, Resizing
from skpbas.core.backbones.levels import HookedModule
from skpbas.core.backbones.weights import load_weights, read_state_dict
from skpbas.errors import WeightsUnavailableError

DEFAULT_LAYERS = ("layer2", "layer3")
"""The detector's default, which stands for similar levels of networks without such names."""

_NAME = re.compile(r"timm:\w+(\.[\w-]+)?", re.ASCII)  # no other source of code or weights, such as "hf-hub:..."
_STRIDES = (8, 16)  # of the default layers
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})


def is_timm_name(backbone: object) -> bool:
    """Return whether this is "timm:" and a name, with a tag of pretrained weights or without.

    Examples
    --------
    >>> from skpbas.core.backbones import is_timm_name
    >>> is_timm_name("timm:vit_small_patch14_dinov2.lvd142m"), is_timm_name("resnet18")
    (True, False)
    """
    return isinstance(backbone, str) and _NAME.fullmatch(backbone) is not None


class TimmNetwork(HookedModule):
    """A network of timm up to the deepest level in use, frozen, for inputs of any size that it can take.

    The input is normalized by the network's own mean and standard deviation. If it embeds patches, its sides are
    resized to the nearest multiples of a patch, so that a grid of whole patches covers the image exactly; position
    embeddings are interpolated. Tokens become maps: those of classes and registers are left out.

    Parameters
    ----------
    model : nn.Module
        Made by timm; used as it is, not copied.
    name : str
        Its name in timm.
    layers : sequence of str
        Names of submodules as in ``model.named_modules()``. If the network does not have :data:`DEFAULT_LAYERS`, they
        stand for its stages of stride 8 and 16, or for the blocks after one half and three quarters of a transformer.

    Attributes
    ----------
    weights_name : str
        timm's name of the network's pretrained weights.

    Raises
    ------
    ValueError
        A level that this network does not have.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, name: str, layers: Sequence[str]) -> None:
        import timm

        super().__init__(model, _resolved(model, name, layers), copies=False)
        config: Any = model.pretrained_cfg
        tag = config.get("tag")
        self.weights_name = name.split(".")[0] + (f".{tag}" if tag else "")
        values = (config.get("mean") or IMAGENET_MEAN, config.get("std") or IMAGENET_STD, IMAGENET_MEAN, IMAGENET_STD)
        mean, std, usual_mean, usual_std = (
            torch.tensor(v, dtype=torch.float64, device="cpu").view(3, 1, 1) for v in values
        )
        # from images normalized as all networks of the package take them; in the state dict, and so in every digest
        self.register_buffer("scale", (usual_std / std).float())
        self.register_buffer("shift", ((usual_mean - mean) / std).float())
        self.resizings = nn.ModuleDict()  # of inputs and of position embeddings, for every size seen
        self._sizes: frozenset[tuple[int, int]] = frozenset()
        self._patch = _patch_of(model)
        input_size = tuple(config.get("input_size") or (3, 224, 224))
        self._pairs = self._drop_unused(input_size)
        self._check_order(input_size)
        self.module.memory_key = f"timm {timm.__version__} {name}"  # type: ignore[assignment] # see _features.module_keys

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature map of every level in use, (B, C_l, H_l, W_l) each.

        Parameters
        ----------
        images : Tensor of shape (B, 3, H, W)
            Normalized by the mean and standard deviation of ImageNet.
        """
        x = self._resized(images) * self.scale + self.shift
        height, width = int(x.shape[-2]), int(x.shape[-1])
        exporting, new = torch.compiler.is_exporting(), (height, width) not in self._sizes
        with _PositionsAsProducts(self.resizings) if exporting or new else contextlib.nullcontext():
            levels = super().forward(x)
        self._sizes |= {(height, width)}
        return [self._as_map(name, y, height, width) for name, y in zip(self.layers, levels, strict=True)]

    def _resized(self, images: Tensor) -> Tensor:
        old = (int(images.shape[-2]), int(images.shape[-1]))
        height, width = (max(round(n / patch), 1) * patch for n, patch in zip(old, self._patch, strict=True))
        if (height, width) == old:
            return images
        resizing = _resizing(self.resizings, images, (height, width))
        if not torch.is_autocast_enabled(images.device.type):
            return resizing(images)
        with torch.autocast(images.device.type, enabled=False):  # pixels keep their bits
            return resizing(images)

    def _as_map(self, name: str, y: object, height: int, width: int) -> Tensor:
        """Return the output of a module as (B, C, H, W)."""
        if isinstance(y, Tensor) and y.ndim == 3:
            n = y.shape[1]
            for factor in (1, 2, 4, 8, 16, 32):
                h, w = (-(-side // (patch * factor)) for side, patch in zip((height, width), self._patch, strict=True))
                extra = n - h * w
                if extra in (int(getattr(self.module, "num_prefix_tokens", 0)), 0):  # some add theirs in late blocks
                    return y[:, extra:].transpose(1, 2).unflatten(2, (h, w))
        if isinstance(y, Tensor) and y.ndim == 4:
            layouts = [y, y.permute(0, 3, 1, 2)]
            for one in reversed(layouts) if getattr(self.module, "output_fmt", "NCHW") == "NHWC" else layouts:
                h, w = one.shape[2:]
                if abs(h * width - w * height) <= max(height, width):  # the input's aspect ratio, but for a position
                    return one
        shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"layers: {name!r} returns {shape} for an input of {height} x {width} pixels, which is no map of "
            f"positions; choose from {_choices(self.module)}"
        )

    def _drop_unused(self, input_size: tuple[int, ...]) -> list[tuple[str, str]]:
        """Replace what no pass up to the last level uses; return the batch norms that can be folded, with convolutions.

        Parameters
        ----------
        input_size : tuple of int
            Channels, height and width that the network takes.

        Returns
        -------
        list of (str, str)
            Names of a convolution and of the batch norm that alone reads its output.
        """
        memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta")) for p in self.module.parameters()}
        memo |= {id(b): b.to("meta") for b in self.module.buffers()}
        blank = copy.deepcopy(self.module, memo)
        levels, seen = HookedModule(blank, self.layers, copies=False), _Observer(blank)
        with torch.no_grad(), seen:
            levels(torch.zeros(1, *input_size, dtype=torch.float32, device="meta"))
        used = seen.called | {name.rpartition(".")[0] for name in seen.read_names()}
        for path, module in list(self.module.named_modules()):
            inside = {path, *(f"{path}.{name}" for name, _ in module.named_modules() if name)}
            if path and inside.isdisjoint(used) and any(True for _ in module.parameters()):
                _replace(self.module, path, _Unused())
        return [pair for pair in seen.pairs() if not set(pair) & set(self.layers)]

    @torch.no_grad()
    def _check_order(self, input_size: tuple[int, ...]) -> None:
        """Check a map of a network of patches against timm's own: tokens may be in any order."""
        stages = [name for name, _ in _stages(self.module)]
        if not hasattr(self.module, "patch_embed") or not stages:
            return
        index = max((stages.index(layer) for layer in self.layers if layer in stages), default=0)
        if getattr(self.module, "dynamic_img_size", False):
            input_size = (3, 8 * self._patch[0], 12 * self._patch[1])
        images = torch.rand(
            1, *input_size, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu"
        )
        outputs: list[Any] = []
        stage = self.module.get_submodule(stages[index])
        handle = stage.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        try:
            compute: Any = self.module.forward_intermediates
            expected = compute(images, indices=[index], intermediates_only=True)[-1]
        except (AttributeError, TypeError) as error:
            raise ValueError(
                f"layers: the order of its tokens cannot be checked ({error}); give it as a module"
            ) from error
        finally:
            handle.remove()
        ours = self._as_map(stages[index], outputs[-1], input_size[1], input_size[2])
        if ours.shape != expected.shape or not torch.allclose(ours, expected, rtol=1e-3, atol=1e-5):
            raise ValueError(
                f"layers: {stages[index]!r} does not return its tokens row by row; give the network as a module with "
                "layers that return maps (B, C, H, W)"
            )

    def fold_batch_norms(self) -> TimmNetwork:
        """Fold batch norms into the convolutions that they follow, once, in place; return the network."""
        while self._pairs:
            conv_name, norm_name = self._pairs.pop()
            conv: Any = self.module.get_submodule(conv_name)
            norm: Any = self.module.get_submodule(norm_name)
            _replace(self.module, conv_name, fuse_conv_bn_eval(conv.eval(), norm.eval()))
            rest = [part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)]
            _replace(self.module, norm_name, nn.Sequential(*rest) if rest else nn.Identity())
        return self.requires_grad_(False).eval()

    @contextlib.contextmanager
    def dropping_unused(self) -> Iterator[None]:
        """Do nothing: what is not used is not there."""
        yield


def _resizing(known: nn.ModuleDict, x: Tensor, new: tuple[int, int], mode: str = "bilinear") -> nn.Module:
    """Return the resizing of x (B, C, H, W), made where it is not known yet."""
    old = (int(x.shape[-2]), int(x.shape[-1]))
    key = f"{mode}_{old[0]}x{old[1]}_{new[0]}x{new[1]}"
    if key not in known:
        known[key] = Resizing(old, new, mode).to(x.device)
    return known[key]


class _PositionsAsProducts(TorchFunctionMode):
    """Antialiased interpolation is computed by matrices, since runtimes of exported graphs differ in it.

    They are made at the first pass of a size, and used where a graph is exported.

    Parameters
    ----------
    known : nn.ModuleDict
        Where they are kept.
    """

    def __init__(self, known: nn.ModuleDict) -> None:
        super().__init__()
        self.known = known

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.interpolate and kwargs.get("antialias") and args[0].ndim == 4 and kwargs.get("size") is not None:
            new = (int(kwargs["size"][0]), int(kwargs["size"][1]))
            same = tuple(args[0].shape[2:]) == new
            return args[0] if same else _resizing(self.known, args[0], new, kwargs["mode"])(args[0])
        return func(*args, **kwargs)


class _Unused(nn.Module):
    """In place of a module behind the last level; an exporter, which cannot stop there, passes through it."""

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor:
        return x


class _Observer(TorchFunctionMode):
    """What is called and which tensors are read in a pass of a network.

    Parameters
    ----------
    network : nn.Module
        It gets hooks.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.called: set[str] = set()
        self.reads: Counter[int] = Counter()
        self._held: list[object] = []  # so that no id is used again
        self._tensors = {id(t): name for name, t in (*network.named_parameters(), *network.named_buffers())}
        self._outputs: dict[int, str] = {}
        self._normalized: dict[str, int] = {}
        for name, module in network.named_modules():
            module.register_forward_pre_hook(self._before(name))
            if type(module) is nn.Conv2d:
                module.register_forward_hook(self._after(name))

    def _before(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            plain = type(module) is nn.BatchNorm2d or type(module).__name__ == "BatchNormAct2d"
            if plain and module.running_mean is not None and name not in self.called:
                self._normalized[name] = id(inputs[0])
            else:
                self._normalized.pop(name, None)  # called twice
            self.called.add(name)

        return hook

    def _after(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            self._held.append(output)
            self._outputs[id(output)] = "" if name in self._outputs.values() else name

        return hook

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        results = [result] if isinstance(result, Tensor) else result if isinstance(result, (tuple, list)) else []
        if any(isinstance(one, Tensor) for one in results):
            for given in (*args, *(kwargs or {}).values()):
                for one in given if isinstance(given, (tuple, list)) else [given]:
                    if isinstance(one, Tensor):
                        self._held.append(one)
                        self.reads[id(one)] += 1
        return result

    def read_names(self) -> set[str]:
        """Return the names of the parameters and buffers that were read."""
        return {name for key, name in self._tensors.items() if self.reads[key]}

    def pairs(self) -> list[tuple[str, str]]:
        """Return names of convolutions and of the batch norms that alone read their outputs."""
        called = Counter(self._outputs.values())
        found = [(self._outputs.get(key, ""), norm) for norm, key in self._normalized.items() if self.reads[key] == 1]
        return [(conv, norm) for conv, norm in found if conv and called[conv] == 1]


def build_timm_network(
    backbone: str, weights: str | Path | None, layers: Sequence[str], generator: torch.Generator
) -> TimmNetwork:
    """Make a network of timm, up to the deepest level in use, with its weights.

    Parameters
    ----------
    backbone : str
        "timm:" and its name.
    weights : "imagenet", path or None
        timm's pretrained ones, from its cache or by download; a state-dict file with timm's names; random.
    layers : sequence of str
        Levels in use, shallow first: see :class:`TimmNetwork`.
    generator : torch.Generator
        Source of random weights.

    Raises
    ------
    ImportError
        timm is not installed.
    ValueError
        timm does not know the network, or the network does not have the levels.
    WeightsError
        A file that does not fit the network.
    WeightsUnavailableError
        "imagenet", but neither cache nor connection provides the weights.
    """
    name = backbone.removeprefix("timm:")
    seed = int(torch.randint(2**31, (), generator=generator, device="cpu"))
    model = _made(name, torch.Generator("cpu").manual_seed(seed), pretrained=str(weights) == "imagenet")
    all_names = set(model.state_dict())
    network = TimmNetwork(model, name, layers)
    if weights is not None and str(weights) != "imagenet":
        load_weights(network.module, read_state_dict(weights), source=str(weights), others=all_names)
    return network.fold_batch_norms()


def _made(name: str, generator: torch.Generator, *, pretrained: bool) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f'backbone="timm:{name}" needs timm ({error}): pip install "skpbas[timm]"') from error

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), 4)
        raise ValueError(
            f"backbone='timm:{name}': timm {timm.__version__} has no such network; "
            + (f"similar names are {', '.join(close)}; " if close else "")
            + "timm.list_models() lists all"
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ValueError(f"backbone='timm:{name}': timm {timm.__version__} has no weights {tag!r}; choose from {tags}")
    if pretrained and not tags:
        raise WeightsUnavailableError(f"backbone='timm:{name}': timm has no pretrained weights of it; give a file")
    try:
        return with_drawn_weights(lambda: _of_any_size(timm.create_model, name, pretrained), generator)
    except Exception as error:
        if not pretrained:
            raise
        source: Any = timm.get_pretrained_cfg(name)
        place = f"https://huggingface.co/{source.hf_hub_id}" if source.hf_hub_id else source.url
        raise WeightsUnavailableError(
            f"the pretrained weights of 'timm:{name}' could not be loaded ({type(error).__name__}: {error}). timm "
            f"takes them from {place} and keeps them in its cache. On a machine without a connection, copy the file "
            "from there and set weights='path/to/model.safetensors', or use backbone=\"embedded\", which needs no "
            "download"
        ) from error


def _of_any_size(create: Callable[..., nn.Module], name: str, pretrained: bool) -> nn.Module:
    """Return the network, for inputs of any size if it has an option for that."""
    for options in _ANY_SIZE:
        try:
            return create(name, pretrained=pretrained, **options)
        except TypeError as error:
            if not any(option in str(error) for option in options):
                raise
    return create(name, pretrained=pretrained)


def _resolved(model: nn.Module, name: str, layers: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the levels in use."""
    known = {path for path, _ in model.named_modules() if path}
    missing = [layer for layer in layers if layer not in known]
    if not missing:
        return tuple(layers)
    default = _default_layers(model) if tuple(layers) == DEFAULT_LAYERS else ()
    if default:
        return default
    raise ValueError(
        f"layers={tuple(layers)!r}: 'timm:{name}' has no submodule {missing[0]!r}; choose from {_choices(model)}"
    )


def _stages(model: nn.Module) -> list[tuple[str, int]]:
    """Return the stages or blocks that timm names, with the stride of each in pixels."""
    known = {path for path, _ in model.named_modules()}
    info: Any = getattr(model, "feature_info", [])
    return [(one["module"], int(one["reduction"])) for one in info if one["module"] in known]


def _choices(model: nn.Module) -> str:
    named = ", ".join(name for name, _ in _stages(model))
    return f"{named}, or from all names in named_modules()" if named else "the names in named_modules()"


def _default_layers(model: nn.Module) -> tuple[str, ...]:
    """Return the levels that the detector's default stands for, or none."""
    stages = _stages(model)
    n = len(stages)
    if n >= 4 and len({stride for _, stride in stages}) == 1:  # a transformer, whose blocks have one size
        return stages[n // 2 - 1][0], stages[3 * n // 4 - 1][0]
    of_stride = {stride: name for name, stride in stages if [n for n, _ in stages].count(name) == 1}  # the last ones
    return tuple(of_stride[stride] for stride in _STRIDES) if of_stride.keys() >= set(_STRIDES) else ()


def _patch_of(model: nn.Module) -> tuple[int, int]:
    """Return height and width of the patches that a network embeds, or 1 x 1."""
    size: Any = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _replace(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    network.get_submodule(parent).add_module(name, module)
