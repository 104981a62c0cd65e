"""Convolutions that keep their weights in the kernels' order are convolutions."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skpbas import _compat
from skpbas.core.backbones import FeatureExtractor, build_backbone, packing
from skpbas.core.backbones.packing import PackedConv2d

needs_order = pytest.mark.skipif(packing._operators() is None, reason="no kernels with an order of their own")


def frozen_conv(*arguments, **named):
    return nn.Conv2d(*arguments, **named).requires_grad_(False)


@given(
    st.integers(1, 3),
    st.sampled_from([(3, 8, 1), (8, 16, 1), (8, 8, 8), (6, 12, 3)]),
    st.sampled_from([(1, 0), (3, 1), (5, 2), (7, 3)]),
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_packed_convolution_gives_what_the_plain_one_gives(batch, channels, kernel, stride, bias, channels_last):
    inputs, outputs, groups = channels
    side, padding = kernel
    conv = frozen_conv(inputs, outputs, side, stride, padding, groups=groups, bias=bias)
    packed = PackedConv2d.of(conv)
    for height, width in ((16, 16), (9, 13)):  # another size than it was packed for
        images = torch.randn(batch, inputs, height, width)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(packed(images), conv(images), atol=1e-5, rtol=1e-5)


@needs_order
def test_weights_that_change_are_packed_anew():
    conv = frozen_conv(4, 6, 3, padding=1)
    packed, images = PackedConv2d.of(conv), torch.randn(1, 4, 8, 8)
    before = packed(images)
    first = packed._packed
    packed(images)
    assert packed._packed is first
    with torch.no_grad():
        packed.weight.mul_(2)
        packed.bias.mul_(2)
    torch.testing.assert_close(packed(images), 2 * before)
    packed.load_state_dict({"weight": torch.zeros(6, 4, 3, 3), "bias": torch.ones(6)})
    assert packed(images).eq(1).all()


@needs_order
def test_weights_put_in_the_place_of_others_are_packed_anew():
    packed, images = PackedConv2d.of(frozen_conv(8, 8, 3)), torch.randn(1, 8, 8, 8)
    for _ in range(50):  # where the allocator gives an address a second time
        packed(images)
        del packed.weight
        packed.weight = nn.Parameter(torch.randn(8, 8, 3, 3), requires_grad=False)
        expected = torch.conv2d(images, packed.weight, packed.bias)
        torch.testing.assert_close(packed(images), expected, atol=1e-4, rtol=1e-4)


@needs_order
def test_no_packed_weights_stay_behind_where_the_network_moves():
    packed = PackedConv2d.of(frozen_conv(3, 4, 3))
    packed(torch.randn(1, 3, 8, 8))
    assert packed._packed is not None
    assert packed.to("meta")._packed is None


@needs_order
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda conv: pickle.loads(pickle.dumps(conv))])
def test_copies_and_pickles_hold_the_weights_once(copied):
    packed = PackedConv2d.of(frozen_conv(16, 16, 3))
    images = torch.randn(1, 16, 8, 8)
    expected = packed(images)
    assert packed._packed is not None
    other = copied(packed)
    assert other._packed is None
    assert len(pickle.dumps(packed)) < 2 * packed.weight.nbytes
    assert torch.equal(other(images), expected)


def test_gradients_to_the_image_are_those_of_the_plain_convolution():
    conv = frozen_conv(3, 4, 3)
    packed = PackedConv2d.of(conv)
    gradients = []
    for module in (conv, packed):
        images = torch.ones(1, 3, 8, 8, requires_grad=True)
        module(images).square().sum().backward()
        gradients.append(images.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_in_bfloat16_it_gives_what_the_plain_one_gives():
    conv = frozen_conv(8, 16, 3, padding=1)
    packed, images = PackedConv2d.of(conv), torch.randn(1, 8, 8, 8)
    before = packed(images)
    with torch.autocast("cpu", torch.bfloat16):
        expected, got = conv(images), packed(images)
        assert torch.equal(packed(images.bfloat16()), got)
    assert got.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected, atol=0.02, rtol=0.02)  # two roundings to eight bits
    assert torch.equal(packed(images), before)  # float32 again


def test_other_tensors_take_the_plain_way():
    packed = PackedConv2d.of(frozen_conv(3, 4, 3))
    images = torch.randn(1, 3, 8, 8)
    assert packed.double()(images.double()).dtype == torch.float64
    assert packed.to("meta")(images.double().to("meta")).shape == (1, 4, 6, 6)


def test_an_extractor_can_be_exported():
    generator = torch.Generator().manual_seed(0)
    extractor = FeatureExtractor(build_backbone("embedded", None, ("layer2",), generator), image_size=(32, 32))
    assert any(isinstance(module, PackedConv2d) for module in extractor.modules())
    images = torch.rand(1, 3, 32, 32)
    (expected,) = extractor.feature_maps(images)
    exported = torch.export.export(extractor.backbone, (images,)).module()
    mean, std = extractor.mean, extractor.std
    (level,) = exported((images - mean) / std)
    torch.testing.assert_close(level, expected, atol=1e-5, rtol=1e-4)


# Private operators may change ------------------------------------------------------------------------------


def other_signature(*arguments):
    raise TypeError("_convolution_pointwise() missing 2 required positional arguments")


def gone(*arguments):
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_convolution_weight'")


def another_order(weight, *arguments):
    return weight.flip(0).contiguous()  # accepted, and wrong


def other_shape(images, packed, *arguments):
    return torch.zeros(1)


def other_values(images, packed, bias, *arguments):
    return 1.001 * torch.conv2d(images, torch.ones(6, 4, 3, 3), bias, padding=1)


def plain_operators(**changes):
    """Operators that compute what oneDNN's do, but for some changes; they exist on every machine."""
    operators = {
        "reorder": lambda weight, *arguments: weight,
        "convolve": lambda images, weight, bias, *geometry_and_more: torch.conv2d(images, weight, bias, padding=1),
        "supports_bfloat16": False,
    }
    return _compat.PackedOperators(**{**operators, **changes})


@pytest.fixture
def fresh(monkeypatch):
    """Nothing is proven yet; returns a function that puts operators in place of this torch's."""
    proven = {}
    monkeypatch.setattr(packing, "_PROVEN", proven)

    def use(operators):
        monkeypatch.setattr(packing, "_operators", lambda: operators)
        return proven

    return use


@pytest.mark.parametrize(
    "changes",
    [
        {"convolve": other_signature},
        {"reorder": gone},
        {"reorder": another_order},
        {"convolve": other_shape},
        {"convolve": other_values},
    ],
    ids=lambda changes: next(iter(changes.values())).__name__,
)
def test_operators_that_changed_are_not_used_and_nothing_is_raised(changes, fresh):
    proven = fresh(plain_operators(**changes))
    conv, images = frozen_conv(4, 6, 3, padding=1), torch.rand(1, 4, 8, 8)
    packed = PackedConv2d.of(conv)
    for _ in range(3):
        assert torch.equal(packed(images), conv(images))
    assert list(proven.values()) == [False]


def test_every_kind_of_convolution_is_compared_with_the_plain_one_once(fresh, monkeypatch):
    calls = []
    plain = nn.Conv2d._conv_forward
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda *arguments: calls.append(1) or plain(*arguments))
    proven = fresh(plain_operators())
    conv = frozen_conv(4, 6, 3, padding=1)
    first, second = PackedConv2d.of(conv), PackedConv2d.of(frozen_conv(4, 6, 3, padding=1))
    for packed in (first, first, second, second):
        packed(torch.rand(1, 4, 8, 8))
    assert len(calls) == 1
    first(torch.rand(1, 4, 16, 8))
    assert len(calls) == 2
    assert list(proven.values()) == [True, True]


def test_an_image_of_infinities_proves_nothing(fresh):
    proven = fresh(plain_operators())
    packed = PackedConv2d.of(frozen_conv(4, 6, 3, padding=1))
    packed(torch.full((1, 4, 8, 8), torch.inf))
    assert proven == {}


@needs_order
def test_this_machines_operators_give_the_plain_result(fresh):
    proven = fresh(_compat.packed_operators())
    generator = torch.Generator().manual_seed(0)
    extractor = FeatureExtractor(build_backbone("resnet18", None, ("layer2", "layer3"), generator), image_size=(64, 64))
    assert len(proven) > 5
    assert all(proven.values())
    assert extractor.grid_shape == (8, 8)


def test_a_torch_without_the_operators_has_none(monkeypatch):
    class Without:
        def __getattr__(self, name):
            raise AttributeError(name)

    monkeypatch.setattr(torch.ops, "mkldnn", Without(), raising=False)
    assert _compat.packed_operators() is None
