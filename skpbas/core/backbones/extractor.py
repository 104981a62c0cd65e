"""Frozen networks that turn images into patch features (Eq. 1-4 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain, pairwise

import torch
from torch import Tensor, nn

from skpbas.core.aggregation import PatchAggregator
from skpbas.core.backbones.batch_norms import fold_batch_norms
from skpbas.core.backbones.input_sizes import IMAGENET_MEAN, IMAGENET_STD, Resizing
from skpbas.core.backbones.levels import HookedModule, LevelNetwork, TruncatedResNet
from skpbas.core.backbones.packing import pack_convolutions
from skpbas.core.backbones.timm_networks import TimmNetwork
from skpbas.core.backbones.weights import check_finite

MULTIPLE = 16
"""Of the sides of an input whose shape is computed, in pixels: the stride of a network's third level."""


class FeatureExtractor(nn.Module):
    """Images to patch features: frozen backbone, then aggregation (Eq. 1-4).

    Parameters
    ----------
    backbone : nn.Module
        Returns one feature map per level for normalized images, as made by :func:`build_backbone`. It is used as it is,
        not copied; the batch norms of a :class:`TruncatedResNet` are folded into its convolutions, which changes
        feature maps by rounding only.
    image_size : (int, int)
        Height and width of the input images, in pixels.
    patch_size : int
        Odd side p of the neighborhood.
    feature_dim : int or "auto"
        Dimension d of a patch feature; "auto": the sum of the levels' channels.
    precision : torch.dtype, default=torch.float32
        Arithmetic of the backbone: float32 or bfloat16.
    scales : sequence of float, default=(1.0,)
        Sizes at which the backbone sees an image, as multiples of ``image_size``: 1.0, and smaller ones behind it.

    Attributes
    ----------
    scale_shapes : list of (int, int)
        Height and width of the image at every scale.
    n_levels : int
        Levels of one scale.
    level_shapes : list of (int, int, int)
        Channels, height and width of the feature map of every level, scale by scale.
    grid_shape : (int, int)
        Patch positions (H0, W0), those of the first level at scale 1.
    stride : int
        Input pixels per position of the coarsest level at scale 1, rounded up.
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
        precision: torch.dtype = torch.float32,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        frozen = backbone.requires_grad_(False).eval()
        if isinstance(frozen, HookedModule):
            _check_module(frozen.module)
        if isinstance(frozen, TruncatedResNet):
            frozen = fold_batch_norms(frozen)
        if isinstance(frozen, (LevelNetwork, TimmNetwork)):
            frozen = pack_convolutions(frozen)
        self.backbone = frozen.to(memory_format=torch.channels_last)
        self.image_size = image_size
        self.precision = precision
        self.register_buffer("mean", _constant(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", _constant(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.scale_shapes = [image_size, *(scaled_shape(image_size, scale) for scale in scales[1:])]
        areas = [height * width for height, width in self.scale_shapes]
        if any(small >= large for large, small in pairwise(areas)):
            shapes = ", ".join(f"{height} x {width}" for height, width in self.scale_shapes)
            raise ValueError(
                f"scales={tuple(scales)!r} of an input of {image_size[0]} x {image_size[1]} pixels are {shapes}, as "
                f"multiples of {MULTIPLE}: choose scales that are further apart, or a larger image_size"
            )
        self._reductions = nn.ModuleList(Resizing(image_size, shape) for shape in self.scale_shapes[1:])
        of_scales = [self._measure_levels(shape) for shape in self.scale_shapes]
        self.level_shapes = list(chain.from_iterable(of_scales))
        self.n_levels = len(of_scales[0])
        self.grid_shape = self.level_shapes[0][1:]
        self.stride = max(-(-image_size[0] // h) for _, h, _ in of_scales[0])
        channels = [c for c, _, _ in of_scales[0]]
        self.feature_dim = sum(channels) if feature_dim == "auto" else int(feature_dim)
        self._aggregators = nn.ModuleList(PatchAggregator(channels, patch_size, self.feature_dim) for _ in of_scales)

    @property
    def aggregators(self) -> list[PatchAggregator]:
        """The aggregation at every scale."""
        return [module for module in self._aggregators if isinstance(module, PatchAggregator)]

    @property
    def aggregator(self) -> PatchAggregator:
        """The aggregation at scale 1."""
        return self.aggregators[0]

    def _measure_levels(self, image_size: tuple[int, int]) -> list[tuple[int, int, int]]:
        height, width = image_size
        example = torch.zeros(1, 3, height, width, dtype=torch.uint8, device="cpu")
        hooked = isinstance(self.backbone, HookedModule)
        try:
            with self.backbone.dropping_unused() if isinstance(self.backbone, HookedModule) else nullcontext():
                maps = self._levels_of(self.normalize(example))
        except Exception as error:
            if not hooked or isinstance(error, ValueError):
                raise
            raise ValueError(
                f"backbone: {type(error).__name__} on an input of {height} x {width} pixels: {error}. If it takes "
                'other sizes only, give image_size=(height, width): with a single number, resize="aspect", tile and '
                f"scales choose sides that are multiples of {MULTIPLE} or follow from the images"
            ) from error
        for level in maps:
            if not isinstance(level, Tensor) or level.ndim != 4:
                shape = tuple(level.shape) if isinstance(level, Tensor) else type(level).__name__
                raise ValueError(f"layers: every level must return a (B, C, H, W) tensor, got {shape}")
        shapes = [(m.shape[1], m.shape[2], m.shape[3]) for m in maps]
        if any(a[1] < b[1] or a[2] < b[2] for a, b in pairwise(shapes)):
            raise ValueError(
                f"layers must be listed shallow first, but their feature maps are {[s[1:] for s in shapes]}"
            )
        return shapes

    @property
    def device(self) -> torch.device:
        """Device of the backbone."""
        return self.mean.device

    def normalize(self, images: Tensor) -> Tensor:
        """Return images (B, 3, H, W), uint8 or float in [0, 1], as the backbone takes them, on its device."""
        x = images.to(self.mean.device, non_blocking=True)
        x = x.float().div_(255) if images.dtype == torch.uint8 else x.float()
        return (x - self.mean) / self.std

    def levels(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps (B, C_l, H_l, W_l), float32, of normalized images (B, 3, H, W), scale by scale."""
        maps = self._levels_of(images)
        for reduction in self._reductions:
            maps += self._levels_of(reduction(images))
        return maps

    def _levels_of(self, images: Tensor) -> list[Tensor]:
        x = images.contiguous(memory_format=torch.channels_last)
        rounded = self.precision != torch.float32
        with torch.autocast(x.device.type, self.precision if rounded else None, enabled=rounded):
            levels = self.backbone(x)
        return [level.float() if isinstance(level, Tensor) else level for level in levels]

    @torch.no_grad()
    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps of a batch of images.

        Parameters
        ----------
        images : Tensor of shape (B, 3, H, W)
            RGB; uint8, or float in [0, 1].

        Returns
        -------
        list of Tensor of shape (B, C_l, H_l, W_l)
            float32, whatever the arithmetic of the backbone; scale by scale.
        """
        self.backbone.eval()  # frozen, whatever was done to it since
        return self.levels(self.normalize(images))

    def pool(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return each level's part of the patch features at its own resolution, scale by scale."""
        n = self.n_levels
        of_scales = [a.pool(maps[scale * n : (scale + 1) * n]) for scale, a in enumerate(self.aggregators)]
        return list(chain.from_iterable(of_scales))

    @property
    def part_shapes(self) -> list[tuple[int, int, int]]:
        """Channels, height and width of what :meth:`pool` returns."""
        outputs = [outputs for aggregator in self.aggregators for outputs in aggregator.outputs]
        return [(o.stop - o.start, h, w) for o, (_, h, w) in zip(outputs, self.level_shapes, strict=True)]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the patch features t, (B, H0*W0, d), of images (B, 3, H, W), uint8 or float in [0, 1], at scale 1."""
        features: Tensor = self.aggregator(self.feature_maps(images)[: self.n_levels])
        return features

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Do nothing: the extractor is frozen and stays in evaluation mode."""
        super().train(False)
        return self


def scaled_shape(image_size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return height and width times ``scale``, as multiples of 16.

    Examples
    --------
    >>> from skpbas.core.backbones.extractor import scaled_shape
    >>> scaled_shape((384, 384), 2 / 3), scaled_shape((608, 240), 2 / 3)
    ((256, 256), (400, 160))
    """
    height, width = (max(round(side * scale / MULTIPLE), 1) * MULTIPLE for side in image_size)
    return height, width


def _constant(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu")


def _check_module(module: nn.Module) -> None:
    """Check that the weights of a module are finite; buffers other than batch norms' may be masks of infinities."""
    buffers = dict(module.named_buffers())
    masks = {name for name in buffers if not name.endswith(("running_mean", "running_var"))}
    check_finite({**dict(module.named_parameters()), **buffers}, f"backbone {type(module).__name__}", masks=masks)
