"""A fitted detector moves to another device as a whole.

No device but the CPU is certain to be here, so most tests move to "meta", where tensors have no values.
"""

import copy

import numpy as np
import pytest
import torch
from helpers import small_detector
from torch import nn

from skpbas import PBASDetector
from skpbas._features.reading import Reading


@pytest.fixture
def with_meta(monkeypatch):
    """Let "meta" count as a device of this machine."""
    monkeypatch.setattr("skpbas.core.devices.is_available", lambda device: device.type in ("cpu", "meta"))


def tensors_of(thing, seen=None, path="detector"):
    """Yield all tensors that an object holds, wherever, with the way to each; how images are read stays on the CPU."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, (type, str, bytes, np.ndarray, Reading)):
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        yield path, thing
    elif isinstance(thing, dict):
        for key, value in thing.items():
            yield from tensors_of(value, seen, f"{path}.{key}")
    elif isinstance(thing, (list, tuple, set)):
        for i, value in enumerate(thing):
            yield from tensors_of(value, seen, f"{path}[{i}]")
    elif hasattr(thing, "__dict__"):
        yield from tensors_of(vars(thing), seen, path)


@pytest.mark.parametrize(
    "params", [{}, {"scales": (1.0, 0.5)}, {"patch_score": "discriminator"}, {"synthesis": None}, {"tile": 48}]
)
def test_every_tensor_of_a_detector_moves(with_meta, good_images, params):
    detector = small_detector(**{"max_epochs": 1, **params}).fit(good_images)
    assert {tensor.device.type for _, tensor in tensors_of(detector)} == {"cpu"}
    assert detector.to("meta") is detector
    left = [path for path, tensor in tensors_of(detector) if tensor.device.type != "meta"]
    assert not left
    assert detector.device_ == torch.device("meta")
    assert detector.model_.extractor is detector.feature_extractor_  # one network, not two


def test_what_predicts_meanwhile_keeps_the_former_tensors(with_meta, fitted, good_images):
    detector = copy.copy(fitted)
    scores = detector.score_samples(good_images)
    before = detector._snapshot()
    detector.to("meta")
    np.testing.assert_array_equal(before.score_samples(good_images), scores)
    np.testing.assert_array_equal(fitted.score_samples(good_images), scores)  # a shallow copy moved, not the original


def test_arithmetic_follows_the_new_device(with_meta, fitted, monkeypatch):
    fast = {"cpu": False, "meta": True}
    monkeypatch.setattr("skpbas.core.devices.has_fast_bfloat16", lambda device: fast[device.type])
    detector = copy.copy(fitted).to("meta")
    assert detector.model_.patch_scorer.precision == torch.bfloat16


def test_moving_to_where_it_is_changes_nothing(fitted):
    model = fitted.model_
    assert fitted.to("cpu").model_ is model


def test_a_device_that_is_not_here_is_refused_and_nothing_moves(fitted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda' is not available"):
        fitted.to("cuda")
    assert {tensor.device.type for _, tensor in tensors_of(fitted)} == {"cpu"}


def test_only_a_fitted_detector_moves():
    with pytest.raises(ValueError, match="not fitted"):
        PBASDetector().to("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_detector_that_moved_to_a_gpu_and_back_gives_the_same_scores(good_images):
    detector = small_detector(max_epochs=1, precision="float32").fit(good_images)
    scores = detector.score_samples(good_images)
    np.testing.assert_allclose(detector.to("cuda").score_samples(good_images), scores, rtol=1e-3)
    np.testing.assert_array_equal(detector.to("cpu").score_samples(good_images), scores)


def test_the_walk_finds_a_tensor_that_is_left_behind(fitted):
    odd = copy.copy(fitted)
    odd.model_ = nn.Module()
    odd.model_.forgotten = [{"of_a_list": torch.zeros(1)}]
    assert "detector.model_.forgotten[0].of_a_list" in [path for path, _ in tensors_of(odd)]
