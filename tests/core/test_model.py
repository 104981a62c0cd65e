"""The whole detector as one network: what the estimator computes, without the estimator."""

import copy
import pickle
import subprocess
import sys
from pkgutil import walk_packages

import numpy as np
import pytest
import torch
from helpers import assert_equal_but_for_rounding, small_detector, textured_images

from skpbas import core
from skpbas.core.model import PBASModel

PATCH_SCORES = ["fused", "discriminator", "distance"]


@pytest.fixture(scope="module")
def detectors(good_images):
    """One for each patch score, with the pretrained backbone that comes with the package."""
    return {
        name: small_detector(patch_score=name, max_epochs=2, contamination=0.1)
        .set_params(backbone="embedded")
        .fit(good_images)
        for name in PATCH_SCORES
    }


def normalized(images):
    """Images (n, H, W, 3), uint8, as the method defines the input of the backbone."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return torch.from_numpy(((images / 255 - mean) / std).transpose(0, 3, 1, 2)).float()


@pytest.mark.parametrize("name", PATCH_SCORES)
def test_a_model_gives_the_scores_and_anomaly_maps_of_its_detector(name, detectors):
    detector = detectors[name]
    images = textured_images(3, seed=1)
    assert isinstance(detector.model_, PBASModel)
    scores, anomaly_maps = detector.model_(normalized(images))
    expected = torch.from_numpy(-detector.score_samples(images)).float()
    # one batch or single images, and with bfloat16 products where the processor has them
    np.testing.assert_allclose(scores.numpy(), expected.numpy(), rtol=0, atol=0.01 * float(expected.abs().max()))
    np.testing.assert_allclose(anomaly_maps.numpy(), detector.anomaly_map(images), rtol=0, atol=0.01)
    assert not scores.requires_grad


@pytest.mark.parametrize("name", PATCH_SCORES)
def test_a_model_in_float32_gives_one_result_for_single_images_and_batches(name, detectors, good_images):
    model = copy.deepcopy(detectors[name].model_)
    model.patch_scorer.precision = torch.float32
    images = normalized(good_images[:3])
    scores, anomaly_maps = model(images)
    for i in range(3):
        score, anomaly_map = model(images[i : i + 1])
        assert_equal_but_for_rounding(score, scores[i : i + 1], n_terms=384, n_layers=20)
        assert_equal_but_for_rounding(anomaly_map, anomaly_maps[i : i + 1], n_terms=384, n_layers=20)


@pytest.mark.parametrize("name", PATCH_SCORES)
def test_a_model_exports_and_the_export_computes_the_same(name, detectors, good_images):
    model = copy.deepcopy(detectors[name].model_)
    model.patch_scorer.precision = torch.float32
    images = normalized(good_images[:2])
    exported = torch.export.export(model, (images,)).module()
    for actual, expected in zip(exported(images), model(images), strict=True):
        assert_equal_but_for_rounding(actual, expected, n_terms=384, n_layers=20)


def test_a_model_with_a_custom_backbone_exports_too(good_images):
    levels = (torch.nn.Conv2d(3, 6, 8, 8), torch.nn.ReLU(), torch.nn.Conv2d(6, 8, 2, 2))
    backbone = torch.nn.Sequential(*levels, torch.nn.Flatten(), torch.nn.Linear(128, 2))
    detector = small_detector(layers=["1", "2"], precision="float32", max_epochs=2).set_params(backbone=backbone)
    model, images = detector.fit(good_images).model_, normalized(good_images[:2])
    exported = torch.export.export(model, (images,)).module()
    for actual, expected in zip(exported(images), model(images), strict=True):
        assert_equal_but_for_rounding(actual, expected, n_terms=384, n_layers=20)


def test_a_model_pickles_without_its_detector(detectors, good_images):
    model = detectors["fused"].model_
    images = normalized(good_images[:2])
    for one, other in zip(pickle.loads(pickle.dumps(model))(images), model(images), strict=True):
        assert torch.equal(one, other)


def test_training_images_are_scored_as_new_by_their_index_alone(detectors, good_images):
    model = detectors["fused"].model_
    feature_maps = model.extractor.feature_maps(torch.from_numpy(good_images[:2].copy()).movedim(-1, 1))
    known, as_new = model.evidence(feature_maps)[0], model.evidence(feature_maps, torch.tensor([0, 1]))[0]
    assert (as_new >= known).all()  # own exemplars only ever bring a patch nearer
    assert (as_new > known).any()


def test_the_core_imports_neither_scikit_learn_nor_what_reads_files_or_trains():
    modules = ["skpbas.core", *(info.name for info in walk_packages(core.__path__, "skpbas.core."))]
    assert "skpbas.core.backbones.embedded" in modules
    code = (
        f"import sys, importlib; [importlib.import_module(name) for name in {modules}]; "
        "print({'sklearn', 'skorch', 'scipy', 'joblib', 'torchvision', 'PIL'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "set()"
