"""Makes the network that a detector's parameters name, with its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from skpbas.core.backbones.batch_norms import fold_batch_norms
from skpbas.core.backbones.building import allocate, draw_resnet_weights, without_weights
from skpbas.core.backbones.embedded import EmbeddedBackbone, load_embedded
from skpbas.core.backbones.levels import HookedModule, TruncatedResNet
from skpbas.core.backbones.timm_networks import build_timm_network, is_timm_name
from skpbas.core.backbones.weights import imagenet_state_dict, load_weights, read_state_dict

TORCHVISION_BACKBONES = ("resnet18", "resnet50", "resnet101", "wide_resnet50_2")


def build_backbone(
    backbone: str | nn.Module,
    weights: str | Path | None,
    layers: Sequence[str],
    generator: torch.Generator,
    *,
    progress: bool = False,
) -> nn.Module:
    """Make the backbone, up to the deepest level in use, with its weights.

    torch's global random stream is neither read nor changed.

    Parameters
    ----------
    backbone : str or nn.Module
        One of :data:`TORCHVISION_BACKBONES`, "embedded", "timm:NAME", or a module with the named layers.
    weights : "imagenet", path or None
        torchvision's IMAGENET1K_V1 or timm's own, a state-dict file, or random. Ignored for "embedded" and modules.
    layers : sequence of str
        Levels in use, shallow first.
    generator : torch.Generator
        Source of random weights.
    progress : bool
        Show the download's progress.

    Returns
    -------
    nn.Module
        Returns one feature map per level for normalized (B, 3, H, W) images.

    Raises
    ------
    WeightsError
        A file that does not fit the backbone.
    WeightsUnavailableError
        "imagenet", but neither cache nor connection provides the file.
    """
    if isinstance(backbone, nn.Module):
        return HookedModule(backbone, layers)
    if backbone == "embedded":
        return load_embedded(layers)
    if is_timm_name(backbone):
        return build_timm_network(backbone, weights, layers, generator)
    import torchvision  # slow to import, and not needed to load a fitted detector

    network = without_weights(lambda: TruncatedResNet(torchvision.models.get_model(backbone, weights=None), layers))
    allocate(network)
    seed = int(torch.randint(2**31, (), generator=generator, device="cpu"))
    if weights is None:
        draw_resnet_weights(network, torch.Generator("cpu").manual_seed(seed))
    elif weights == "imagenet":
        load_weights(network, imagenet_state_dict(backbone, progress=progress), source=f"{backbone} IMAGENET1K_V1")
    else:
        load_weights(network, read_state_dict(weights), source=str(weights))
    return network


def backbone_of_tensors(backbone: str, layers: Sequence[str], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Make a backbone from the tensors of a frozen one, whose batch norms are folded into its convolutions.

    Parameters
    ----------
    backbone : str
        One of :data:`TORCHVISION_BACKBONES`, "embedded" or "timm:NAME".
    layers : sequence of str
        Levels in use, shallow first.
    tensors : mapping of str to Tensor
        The state dict of ``FeatureExtractor.backbone``, on the CPU; used as they are, not copied.

    Returns
    -------
    nn.Module
        As from :func:`build_backbone`, frozen.

    Raises
    ------
    ValueError
        The network has other layers or tensors.
    """
    if backbone == "embedded":
        network: nn.Module = without_weights(lambda: EmbeddedBackbone(layers))
    elif is_timm_name(backbone):
        network = build_timm_network(backbone, None, layers, torch.Generator("cpu").manual_seed(0))
    else:
        import torchvision

        network = without_weights(
            lambda: fold_batch_norms(TruncatedResNet(torchvision.models.get_model(backbone, weights=None), layers))
        )
    expected = network.state_dict()
    if expected.keys() != tensors.keys():
        different = min(expected.keys() ^ tensors.keys())
        raise ValueError(f"the backbone {backbone!r} and the tensors given for it differ in {different[:60]!r}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise ValueError(f"the tensor {name!r} of the backbone {backbone!r} has another shape or type")
    network.load_state_dict(dict(tensors), assign=True)
    return network.requires_grad_(False).eval()
