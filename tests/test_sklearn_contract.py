"""scikit-learn's estimator checks, on a subclass that turns rows into tiny images."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, validate_data

from skpbas import PBASDetector

SIDE = 16


class RowsAsImages(PBASDetector):
    """Accepts rows (n, n_features): each becomes a 16 x 16 image of its features, tiled and mapped to [0, 1]."""

    def __init__(self, *, max_epochs=1, alpha=0.3, contamination=0.1, precision="float32", random_state=None):
        super().__init__(
            "resnet18",
            weights=None,
            layers=("layer1",),
            image_size=SIDE,
            hidden_dim=8,
            device="cpu",
            max_epochs=max_epochs,
            alpha=alpha,
            contamination=contamination,
            exclude_outliers=False,  # rows of a table are not pictures of one product
            precision=precision,
            random_state=random_state,
        )

    def fit(self, X, y=None):
        X = validate_data(self, X)
        if len(X) < 2:
            raise ValueError(f"n_samples={len(X)}: 1 sample is not enough")
        return super().fit(_images(X))  # the checks pass unrelated class labels

    def partial_fit(self, X, y=None):
        if not hasattr(self, "feature_extractor_"):
            return self.fit(X)
        return super().partial_fit(_images(validate_data(self, X, reset=False)))

    def score_samples(self, X):
        check_is_fitted(self)
        return super().score_samples(_images(validate_data(self, X, reset=False)))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = False
        return tags


def _images(X):
    tiled = np.resize(np.arange(X.shape[1]), SIDE * SIDE)
    return expit(np.asarray(X, dtype=np.float64) / 10)[:, tiled].reshape(-1, SIDE, SIDE)


@parametrize_with_checks([RowsAsImages()])
def test_the_estimator_passes_the_checks_of_sklearn(estimator, check):
    check(estimator)


def test_the_tags_of_the_detector_are_correct():
    tags = PBASDetector().__sklearn_tags__()
    assert tags.estimator_type == "outlier_detector"
    assert tags.input_tags.three_d_array
    assert not tags.input_tags.two_d_array
    assert not tags.target_tags.required


def test_the_detector_rejects_two_dimensional_data():
    with pytest.raises(ValueError, match="2 dimensions"):
        PBASDetector(weights=None).fit(np.zeros((10, 4)))
