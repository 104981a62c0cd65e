"""Networks that return the feature maps of named levels: in general, of a ResNet, and of any module."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

RESNET_LEVELS = ("layer1", "layer2", "layer3", "layer4")


class LevelNetwork(nn.Module):
    """Children that run one after the other, some of which are levels.

    Parameters
    ----------
    layers : sequence of str
        Names of the children whose feature maps are returned; a subclass adds the children, none after the last of
        these.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        super().__init__()
        self.layers = tuple(layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature map of every level in use, (B, C_l, H_l, W_l) each.

        Parameters
        ----------
        images : Tensor of shape (B, 3, H, W)
            Normalized by the mean and standard deviation of ImageNet.
        """
        maps = {}
        x = images
        for name, module in self.named_children():
            x = module(x)
            maps[name] = x
        return [maps[name] for name in self.layers]


class TruncatedResNet(LevelNetwork):
    """A torchvision ResNet from its stem to the deepest level in use.

    Parameters
    ----------
    resnet : nn.Module
        A torchvision ``ResNet``; its modules are used as they are, not copied.
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
    """Ends a forward pass after the last level in use."""


class _Collected(threading.local):
    """The feature maps of the pass that runs in this thread; other threads and copies have their own."""

    maps: dict[str, Tensor] | None = None

    def __reduce__(self) -> tuple[type[_Collected], tuple[()]]:
        return type(self), ()


class _Keep:
    """A forward hook that keeps the feature map of a level, and ends the pass once every level has one.

    Parameters
    ----------
    collected : _Collected
        Where the maps go.
    name : str
        The level.
    n_levels : int
        Levels in use.
    """

    def __init__(self, collected: _Collected, name: str, n_levels: int) -> None:
        self.collected, self.name, self.n_levels = collected, name, n_levels

    def __call__(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        maps = self.collected.maps
        if maps is None:  # somebody calls the module itself
            return
        maps[self.name] = output
        if len(maps) == self.n_levels and not torch.compiler.is_exporting():  # which cannot follow an exception
            raise _DeepestLevelReached


class HookedModule(nn.Module):
    """Any module with named layers, run up to the last of them.

    The module is copied, so that later changes of the caller's module do not affect the detector, and computes in
    float32. Any number of threads may call it at the same time.

    Parameters
    ----------
    module : nn.Module
        Takes (B, 3, H, W) images normalized by the mean and standard deviation of ImageNet.
    layers : sequence of str
        Names of submodules as in ``module.named_modules()``; each returns a (B, C, H, W) tensor.
    copies : bool, default=True
        False: the module is the network's own from now on.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str], *, copies: bool = True) -> None:
        super().__init__()
        names = [name for name, _ in module.named_modules() if name]
        for layer in layers:
            if layer not in names:
                shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
                raise ValueError(f"layers={tuple(layers)!r}: the backbone has no submodule {layer!r}; it has {shown}")
        self.layers = tuple(layers)
        self.module = (copy.deepcopy(module) if copies else module).eval().float()
        # registered once: a hook registered for a call would be seen by the calls of all other threads
        self._collected = _Collected()
        self._hooks = [  # kept, because with them a pickle keeps new hooks from taking the numbers of these
            self.module.get_submodule(name).register_forward_hook(_Keep(self._collected, name, len(self.layers)))
            for name in self.layers
        ]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature map of every level in use, (B, C_l, H_l, W_l) each, for (B, 3, H, W) images."""
        maps: dict[str, Tensor] = {}
        self._collected.maps = maps
        try:
            self.module(images)
        except _DeepestLevelReached:
            pass
        finally:
            self._collected.maps = None
        missing = [name for name in self.layers if name not in maps]
        if missing:
            raise ValueError(f"layers={self.layers!r}: a forward pass of the backbone never calls {missing[0]!r}")
        return [maps[name] for name in self.layers]

    @contextlib.contextmanager
    def dropping_unused(self) -> Iterator[None]:
        """Replace the children that no pass within the context calls by empty ones, when it ends.

        Not for use by several threads.
        """
        called: set[nn.Module] = set()
        handles = [m.register_forward_pre_hook(lambda m, _: called.add(m)) for m in self.module.modules()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for parent in list(self.module.modules()):
            for name, child in list(parent.named_children()):
                # a container may be used through its children alone
                if called.isdisjoint(child.modules()) and any(True for _ in child.parameters()):
                    parent.add_module(name, nn.Identity())
