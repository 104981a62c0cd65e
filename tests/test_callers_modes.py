"""Modes of torch that the caller is in change nothing: neither in fit, nor in prediction, nor in what is opened."""

import pickle
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from helpers import textured_images

from skpbas import PBASDetector


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


MODES = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default_device": lambda: default_device("meta"),  # where nothing has values
    "device": lambda: torch.device("meta"),
}
VARIANTS = {
    "default": {},
    "bfloat16": {"precision": "bfloat16"},
    "discriminator": {"patch_score": "discriminator", "center_init": "kmeans", "projector_init": "orthogonal"},
    "gaussian": {"synthesis": "gaussian", "contamination": 0.1, "projector_init": "xavier"},
    "distance": {"synthesis": None, "center_init": "ema", "resize": "crop"},
    "random": {"backbone": "resnet18", "weights": None, "center_init": "mean"},
}


def fit(images, backbone="embedded", **params):
    recipe = {"image_size": 32, "hidden_dim": 16, "n_exemplars": 64, "max_epochs": 2, "batch_size": 4}
    return PBASDetector(backbone, **{**recipe, "device": "cpu", "random_state": 0, **params}).fit(images)


def outcome(detector, images):
    return [detector.decision_function(images), *detector.iter_anomaly_maps(images, size="input")]


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


@pytest.fixture(scope="module")
def images():
    return textured_images(8, side=40), textured_images(3, side=40, seed=1)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, images):
    normal, new = images
    params = VARIANTS[request.param]
    detector = fit(normal, **params)
    return params, detector, outcome(detector, new)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_of_the_caller_changes_nothing(mode, variant, images):
    normal, new = images
    params, outside, expected = variant
    with MODES[mode]():
        assert_same(outcome(outside, new), expected)
        inside = fit(normal, **params)
        assert_same(outcome(inside, new), expected)
    assert_same(outcome(inside, new), expected)
    assert inside.loss_curve_ == outside.loss_curve_


@pytest.mark.parametrize("mode", MODES)
def test_what_is_opened_in_a_mode_computes_the_same_in_it_and_outside(mode, images):
    normal, new = images
    detector = fit(normal)
    expected, content = outcome(detector, new), pickle.dumps(detector)
    with MODES[mode]():
        opened = pickle.loads(content)
        assert_same(outcome(opened, new), expected)
    assert_same(outcome(opened, new), expected)
    assert not [p for p in opened.model_.parameters() if p.is_inference()]


@pytest.mark.parametrize("mode", ["float64", "inference_mode", "autocast"])
def test_a_module_made_in_a_mode_serves_as_backbone(mode, images):
    def module():
        made = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 4, 4), torch.nn.ReLU(), torch.nn.Conv2d(6, 8, 2, 2))
        rng = np.random.default_rng(0)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.copy_(torch.from_numpy(rng.normal(0, 0.3, tuple(parameter.shape)).astype(np.float32)))
        return made

    normal, new = images
    expected = outcome(fit(normal, module(), layers=["1", "2"]), new)
    with MODES[mode]():
        inside = fit(normal, module(), layers=["1", "2"])
        assert_same(outcome(inside, new), expected)
    assert_same(outcome(inside, new), expected)


def test_between_two_results_the_caller_is_in_its_own_mode(images):
    normal, new = images
    detector = fit(normal)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for _ in detector.iter_scores_and_maps(new):
            assert torch.is_inference_mode_enabled()
            assert torch.is_autocast_enabled("cpu")
    results = detector.iter_scores_and_maps(new)
    with torch.inference_mode():
        next(results)  # begun in one mode, continued in another
    assert len(list(results)) == len(new) - 1
    assert torch.is_grad_enabled()
