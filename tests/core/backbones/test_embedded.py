"""The shipped network: what is in the package, what it gives, and that it needs nothing else."""

import socket
from importlib import resources

import pytest
import torch
from torch import nn

from skpbas.core.backbones import FeatureExtractor
from skpbas.core.backbones.embedded import LEVELS, WEIGHTS_FILE, WIDTHS, EmbeddedBackbone, load_embedded, shipped_form


def images(n=2, height=64, width=96, seed=0):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def in_training():
    """A network with batch norms whose statistics and gains are not the first ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = EmbeddedBackbone(batch_norm=True)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.2, 1.0)
                nn.init.normal_(module.bias, std=0.1)
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.eval()


def test_weights_are_small_enough_for_a_wheel():
    file = resources.files("skpbas.core.backbones").joinpath(WEIGHTS_FILE)
    assert len(file.read_bytes()) <= 6_000_000


def test_loads_without_a_network_connection(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    maps = load_embedded()(images())
    assert all(level.isfinite().all() for level in maps)


def test_levels_have_the_strides_of_a_resnet():
    maps = load_embedded(LEVELS)(images(height=96, width=128))
    assert [tuple(level.shape) for level in maps] == [
        (2, WIDTHS[0], 24, 32),
        (2, WIDTHS[1], 12, 16),
        (2, WIDTHS[2], 6, 8),
    ]
    assert WIDTHS[1:] == (128, 256)  # those of a ResNet18


@pytest.mark.parametrize("side", [32, 100, 255])
def test_sides_need_be_no_multiple_of_the_stride(side):
    maps = load_embedded()(images(1, side, side + 1))
    assert [tuple(level.shape[2:]) for level in maps] == [
        (-(-side // 8), -(-(side + 1) // 8)),
        (-(-side // 16), -(-(side + 1) // 16)),
    ]


def test_levels_come_in_the_order_asked_for_and_are_the_same_alone():
    both = load_embedded(("layer1", "layer3"))(images())
    (alone,) = load_embedded(("layer3",))(images())
    torch.testing.assert_close(both[1], alone, rtol=0, atol=0)


def test_nothing_behind_the_deepest_level_is_kept():
    network = load_embedded(("layer1", "layer2"))
    assert [name for name, _ in network.named_children()] == ["stem", "layer1", "layer2"]


def test_unknown_level_is_named():
    with pytest.raises(ValueError, match=r"no 'layer4'; choose from \('layer1', 'layer2', 'layer3'\)"):
        EmbeddedBackbone(("layer2", "layer4"))


def test_frozen_and_in_float32():
    network = load_embedded()
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_an_image_has_the_same_features_in_any_batch():
    extractor = FeatureExtractor(load_embedded(), image_size=(64, 96))
    batch = torch.rand(5, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    together = extractor(batch)
    alone = torch.cat([extractor(image[None]) for image in batch])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_feature_extractor_measures_its_levels():
    extractor = FeatureExtractor(load_embedded(), image_size=(64, 96))
    assert extractor.level_shapes == [(128, 8, 12), (256, 4, 6)]
    assert extractor.feature_dim == 384
    assert not any(p.requires_grad for p in extractor.parameters())


def test_images_are_not_written_to():
    batch = images()
    before = batch.clone()
    load_embedded()(batch)
    assert torch.equal(batch, before)


def test_shipped_features_tell_pictures_apart():
    flat, striped = torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    striped[..., ::8] = 2.0
    network = load_embedded()
    for a, b in zip(network(flat), network(striped), strict=True):
        assert (a - b).abs().mean() > 0.01


def test_folded_network_gives_the_maps_of_the_one_in_training(in_training):
    folded = shipped_form(in_training)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    for mine, theirs in zip(folded(images()), in_training(images()), strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-4, atol=1e-4)


def test_folding_leaves_the_network_in_training_as_it_was(in_training):
    before = {name: value.clone() for name, value in in_training.state_dict().items()}
    shipped_form(in_training)
    assert all(torch.equal(value, before[name]) for name, value in in_training.state_dict().items())
