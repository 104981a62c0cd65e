"""Integer parameters: those of numpy are as good as Python's, and a bool is none."""

import numpy as np
import pytest
from helpers import textured_images
from sklearn.model_selection import GridSearchCV

from skpbas import PBASDetector
from skpbas.calibration import ConformalThreshold

INTEGERS = {
    "patch_size": 3,
    "feature_dim": 40,
    "image_size": 32,
    "n_heads": 2,
    "hidden_dim": 200,
    "max_epochs": 2,
    "batch_size": 4,
    "patches_per_step": 50,
    "n_exemplars": 60,
    "random_state": 7,
    "n_jobs": 2,
    "verbose": 0,
}
FLOATS = {
    "center_momentum": 0.25,
    "alpha": 0.5,
    "projector_lr": 2**-10,
    "discriminator_lr": 2**-11,
    "projector_decay": 2**-16,
    "discriminator_decay": 2**-6,
    "smoothing_sigma": 2.5,
    "contamination": 0.25,
}


@pytest.fixture(scope="module")
def images():
    return textured_images(6, side=40)


def outcome(images, **params):
    detector = PBASDetector("embedded", **{**INTEGERS, "device": "cpu", **params}).fit(images)
    return np.append(detector.decision_function(images), detector.anomaly_map(images[:1]))


@pytest.fixture(scope="module")
def expected(images):
    return outcome(images, **FLOATS)


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8])
@pytest.mark.parametrize("number", [np.float64, np.float32])
def test_numbers_of_numpy_give_the_detector_that_pythons_give(images, expected, integer, number):
    params = {name: integer(value) for name, value in INTEGERS.items()}
    params |= {name: number(value) for name, value in FLOATS.items()}
    np.testing.assert_array_equal(outcome(images, **params), expected)
    params["image_size"] = (integer(32), integer(32))
    np.testing.assert_array_equal(outcome(images, **params), expected)


@pytest.mark.parametrize("name", sorted(set(INTEGERS) - {"verbose", "patch_size"}))
def test_a_search_takes_a_grid_of_numpy(images, name):
    small = {"image_size": 32, "hidden_dim": 16, "max_epochs": 1, "n_exemplars": 20, "device": "cpu"}
    grid = {name: np.arange(INTEGERS[name], INTEGERS[name] + 2)}
    search = GridSearchCV(
        PBASDetector("embedded", **small),
        grid,
        cv=2,
        scoring=lambda detector, X, y=None: detector.score_samples(X).mean(),
        error_score="raise",
    )
    assert search.fit(images).best_params_[name] in grid[name]


@pytest.mark.parametrize("value", [True, False, np.True_])
@pytest.mark.parametrize("name", sorted(set(INTEGERS) - {"verbose"}))
def test_a_bool_is_no_integer(images, name, value):
    with pytest.raises(ValueError, match=rf"{name}.*{value}"):
        PBASDetector("embedded", device="cpu", **{name: value}).fit(images)


def test_a_bool_is_no_side_and_no_number_of_samples(images):
    with pytest.raises(ValueError, match=r"image_size=\(32, True\)"):
        PBASDetector("embedded", device="cpu", image_size=(32, True)).fit(images)
    with pytest.raises(ValueError, match="calibration_size"):
        ConformalThreshold(PBASDetector("embedded"), calibration_size=True).fit(images)
