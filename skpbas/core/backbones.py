"""Frozen networks that turn images into level maps (METHOD 1, Eq. 1).

Whatever lies behind the deepest level in use is neither kept nor run.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from skpbas.core.aggregation import PatchAggregator
from skpbas.core.embedded import load_embedded
from skpbas.core.folding import fold_batch_norms
from skpbas.core.levels import LevelNetwork
from skpbas.core.packing import pack_convolutions
from skpbas.core.weights import imagenet_state_dict, load_weights, read_state_dict

TORCHVISION_BACKBONES = ("resnet18", "resnet50", "resnet101", "wide_resnet50_2")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RESNET_LEVELS = ("layer1", "layer2", "layer3", "layer4")


class TruncatedResNet(LevelNetwork):
    """A torchvision ResNet from its stem to the deepest level in use.

    Parameters
    ----------
    resnet : nn.Module
        A torchvision ``ResNet``; its modules are taken over, not copied.
    layers : sequence of str
        Levels to return, out of ``layer1`` .. ``layer4``.
    """

    def __init__(self, resnet: nn.Module, layers: Sequence[str]) -> None:
        unknown = [name for name in layers if name not in RESNET_LEVELS]
        if unknown:
            raise ValueError(f"layers={tuple(layers)!r}: a ResNet has no {unknown[0]!r}; choose from {RESNET_LEVELS}")
        super().__init__(layers)
        deepest = max(RESNET_LEVELS.index(name) for name in layers)
        for name in ("conv1", "bn1", "relu", "maxpool", *RESNET_LEVELS[: deepest + 1]):
            self.add_module(name, resnet.get_submodule(name))


class _DeepestLevelReached(Exception):
    """Ends a forward pass behind the last level in use."""


class HookedModule(nn.Module):
    """Any module with named layers, run up to the last of them.

    The module is copied, so that later changes to the caller's one do not reach the detector, and those of its
    children that a pass does not need are dropped from the copy.

    Parameters
    ----------
    module : nn.Module
        Takes (B, 3, H, W) images normalised by ImageNet's mean and deviation.
    layers : sequence of str
        Names of submodules as in ``module.named_modules()``; each gives a (B, C, H, W) tensor.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        names = [name for name, _ in module.named_modules() if name]
        for layer in layers:
            if layer not in names:
                shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
                raise ValueError(f"layers={tuple(layers)!r}: the backbone has no submodule {layer!r}; it has {shown}")
        self.layers = tuple(layers)
        self.module = copy.deepcopy(module).eval()
        self._drop_unused = True

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the map of every level in use, (B, C_l, H_l, W_l) each, for (B, 3, H, W) images."""
        maps: dict[str, Tensor] = {}
        called: set[nn.Module] = set()

        def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
            def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
                maps[name] = output
                if len(maps) == len(self.layers):
                    raise _DeepestLevelReached

            return hook

        handles = [self.module.get_submodule(name).register_forward_hook(keep(name)) for name in self.layers]
        if self._drop_unused:
            handles += [m.register_forward_pre_hook(lambda m, _: called.add(m)) for m in self.module.modules()]
        try:
            with contextlib.suppress(_DeepestLevelReached):
                self.module(images)
        finally:
            for handle in handles:
                handle.remove()
        missing = [name for name in self.layers if name not in maps]
        if missing:
            raise ValueError(f"layers={self.layers!r}: a forward pass of the backbone never calls {missing[0]!r}")
        if self._drop_unused:
            self._drop(called)
        return [maps[name] for name in self.layers]

    def _drop(self, called: set[nn.Module]) -> None:
        """Replace the modules which the first pass did not call by empty ones."""
        self._drop_unused = False
        for parent in list(self.module.modules()):
            for name, child in list(parent.named_children()):
                # a container may be used through its children alone
                if called.isdisjoint(child.modules()) and any(True for _ in child.parameters()):
                    parent.add_module(name, nn.Identity())


class FeatureExtractor(nn.Module):
    """Images to patch features: frozen backbone, then aggregation (METHOD 1).

    Parameters
    ----------
    backbone : nn.Module
        Gives one map a level for normalised images, as :func:`build_backbone` makes it. It is taken over, not copied;
        the batch norms of a :class:`TruncatedResNet` go into its convolutions, which changes maps by rounding only.
    image_size : (int, int)
        Height and width of the images it will see, in pixels.
    patch_size : int
        Odd side p of the neighbourhood.
    feature_dim : int or "auto"
        Dimension d of a patch feature; "auto": the sum of the levels' channels.
    autocast : torch.dtype or None
        Arithmetic of the backbone; None: float32.

    Attributes
    ----------
    level_shapes : list of (int, int, int)
        Channels, height and width of every level's map.
    grid_shape : (int, int)
        Patch positions (H0, W0), those of the first level.
    stride : int
        Input pixels a position of the coarsest level, rounded up.
    feature_dim : int
        Dimension d of a patch feature.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        image_size: tuple[int, int],
        patch_size: int = 3,
        feature_dim: int | str = "auto",
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        frozen = backbone.requires_grad_(False).eval()
        if isinstance(frozen, TruncatedResNet):
            frozen = fold_batch_norms(frozen)
        if isinstance(frozen, LevelNetwork):
            frozen = pack_convolutions(frozen)
        self.backbone = frozen.to(memory_format=torch.channels_last)
        self.image_size = image_size
        self.autocast = autocast
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.level_shapes = self._measure_levels()
        self.grid_shape = self.level_shapes[0][1:]
        self.stride = max(-(-image_size[0] // h) for _, h, _ in self.level_shapes)
        self.feature_dim = sum(c for c, _, _ in self.level_shapes) if feature_dim == "auto" else int(feature_dim)
        self.aggregator = PatchAggregator([c for c, _, _ in self.level_shapes], patch_size, self.feature_dim)

    def _measure_levels(self) -> list[tuple[int, int, int]]:
        height, width = self.image_size
        maps = self.maps(torch.zeros(1, 3, height, width, dtype=torch.uint8))
        for level in maps:
            if not isinstance(level, Tensor) or level.ndim != 4:
                shape = tuple(level.shape) if isinstance(level, Tensor) else type(level).__name__
                raise ValueError(f"layers: every level must give a (B, C, H, W) tensor, got {shape}")
        shapes = [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]
        if any(a[1] < b[1] or a[2] < b[2] for a, b in pairwise(shapes)):
            raise ValueError(f"layers must be given shallow first, but their maps are {[s[1:] for s in shapes]}")
        return shapes

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.mean.device

    @torch.no_grad()
    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the levels' maps of a batch of images.

        Parameters
        ----------
        images : Tensor of shape (B, 3, H, W)
            RGB; uint8, or float in [0, 1].

        Returns
        -------
        list of Tensor of shape (B, C_l, H_l, W_l)
            float32 whatever the arithmetic inside.
        """
        self.backbone.eval()  # frozen, whatever was done to it since
        x = images.to(self.mean.device, non_blocking=True)
        x = x.float().div_(255) if images.dtype == torch.uint8 else x.float()
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            levels = self.backbone(x)
        return [level.float() if isinstance(level, Tensor) else level for level in levels]

    @torch.no_grad()
    def aggregate(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the patch features (B, H0*W0, d) of the levels' maps."""
        features: Tensor = self.aggregator(maps)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return the patch features t, (B, H0*W0, d), of (B, 3, H, W) images."""
        return self.aggregate(self.maps(images))

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stay in evaluation mode: the extractor is frozen."""
        super().train(False)
        return self


def build_backbone(
    backbone: str | nn.Module,
    weights: str | Path | None,
    layers: Sequence[str],
    generator: torch.Generator,
    *,
    progress: bool = False,
) -> nn.Module:
    """Make the truncated network with its weights.

    Parameters
    ----------
    backbone : str or nn.Module
        One of :data:`TORCHVISION_BACKBONES`, "embedded", or a module with the named layers.
    weights : "imagenet", path or None
        torchvision's IMAGENET1K_V1, a state-dict file, or random. Ignored for "embedded" and modules.
    layers : sequence of str
        Levels in use, shallow first.
    generator : torch.Generator
        Source of random weights.
    progress : bool
        Show the download's progress.

    Returns
    -------
    nn.Module
        Gives one map a level for normalised (B, 3, H, W) images.

    Raises
    ------
    WeightsError
        A file that does not fit the backbone.
    WeightsUnavailableError
        "imagenet", but neither cache nor connection has the file.
    """
    if isinstance(backbone, nn.Module):
        return HookedModule(backbone, layers)
    if backbone == "embedded":
        return load_embedded(layers)
    import torchvision  # slow to import, and not needed to load a fitted detector

    with torch.random.fork_rng(devices=[]):  # torchvision draws its first weights from the global stream
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        network = TruncatedResNet(torchvision.models.get_model(backbone, weights=None), layers)
    if weights == "imagenet":
        load_weights(network, imagenet_state_dict(backbone, progress=progress), source=f"{backbone} IMAGENET1K_V1")
    elif weights is not None:
        load_weights(network, read_state_dict(weights), source=str(weights))
    return network
