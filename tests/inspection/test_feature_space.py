"""Features in two dimensions and distances to the centers, against slow computations in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import small_detector, textured_images
from sklearn.decomposition import PCA

from skpbas.errors import InvalidTargetError
from skpbas.inspection import BoundaryDisplay, CenterDisplay

pytest.importorskip("matplotlib.pyplot")


def slow_distances(features, center):
    """Distance of each feature (n, d) to its most similar center."""
    found = []
    for feature in features:
        similar = [feature @ c / np.linalg.norm(c) for c in center]
        found.append(np.linalg.norm(feature - center[int(np.argmax(similar))]))
    return np.array(found)


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    center = rng.normal(size=(12, 6))
    good = center[rng.integers(12, size=80)] + rng.normal(0, 0.2, (80, 6))
    return good, center, 1.2 * good, 3 * rng.normal(size=(9, 6))


@pytest.fixture(scope="module")
def patch_features(fitted):
    """t (n, P, d) and phi(t) of four good images."""
    with torch.no_grad():
        t = fitted.feature_extractor_(torch.from_numpy(textured_images(4, seed=8)).movedim(-1, 1))
        return t.numpy(), fitted.projector_(t).numpy()


def test_a_point_is_as_far_from_the_middle_as_its_feature_is_from_its_center(features):
    good, center, synthetic, real = features
    display = BoundaryDisplay.from_predictions(good, center, synthetic, real)
    for points, group in ((display.good, good), (display.synthetic, synthetic), (display.real, real)):
        assert np.linalg.norm(points, axis=1) == pytest.approx(slow_distances(group, center))
    assert display.radius == pytest.approx(slow_distances(good, center).mean())
    assert display.center.tolist() == [[0, 0]]
    assert display.ax_.get_aspect() == 1


def test_the_projection_is_fitted_to_good_features_only(features):
    good, center, synthetic, real = features
    display = BoundaryDisplay.from_predictions(good, center, synthetic, real, view="projection")
    pca = PCA(2, svd_solver="covariance_eigh").fit(good)
    for points, group in ((display.good, good), (display.center, center), (display.real, real)):
        assert points == pytest.approx(pca.transform(group))


def test_groups_are_named_with_their_sizes(features):
    display = BoundaryDisplay.from_predictions(*features)
    texts = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert {"good (80)", "synthetic (80)", "defective (9)", "centers"} < set(texts)


def test_a_projection_to_three_dimensions_is_an_error(features):
    with pytest.raises(ValueError, match=r"PCA\(n_components=3\) returns an array of shape \(\d+, 3\)"):
        BoundaryDisplay.from_predictions(*features, projection=PCA(3))
    with pytest.raises(ValueError, match="view='3d'"):
        BoundaryDisplay.from_predictions(*features, view="3d")


def test_synthetic_features_lie_alpha_r_beyond_those_they_come_from(fitted, good_images):
    display = BoundaryDisplay.from_estimator(fitted, good_images, n_patches=200, random_state=0)
    beyond = np.linalg.norm(display.synthetic, axis=1) - np.linalg.norm(display.good, axis=1)
    assert len(display.good) == 200
    assert np.median(beyond) == pytest.approx(fitted.alpha * display.radius, rel=1e-3)  # few change their center


def test_good_features_are_all_patches_if_there_are_few(fitted, patch_features):
    _, u = patch_features
    display = BoundaryDisplay.from_estimator(fitted, textured_images(4, seed=8), n_patches=10**6, random_state=0)
    distances = slow_distances(u.reshape(-1, u.shape[-1]), fitted.center_.numpy())
    assert np.sort(np.linalg.norm(display.good, axis=1)) == pytest.approx(np.sort(distances), rel=1e-3)


def test_real_features_are_those_inside_the_masks(fitted, patch_features):
    _, u = patch_features
    images = textured_images(4, seed=8)
    mask = np.zeros((64, 64), bool)
    mask[8:24, 32:48] = True  # rows 1 and 2, columns 4 and 5 of 8 x 8 patches
    display = BoundaryDisplay.from_estimator(fitted, images, [None, mask, None, None], random_state=0)
    inside = u[1].reshape(8, 8, -1)[1:3, 4:6].reshape(4, -1)
    expected = slow_distances(inside, fitted.center_.numpy())
    assert np.sort(np.linalg.norm(display.real, axis=1)) == pytest.approx(np.sort(expected), rel=1e-3)


def test_a_defect_smaller_than_a_patch_has_the_patch_that_holds_the_most_of_it(fitted):
    mask = np.zeros((64, 64), bool)
    mask[10:12, 10:12] = True
    display = BoundaryDisplay.from_estimator(fitted, textured_images(2, seed=8), [None, mask], random_state=0)
    assert len(display.real) == 1


def test_equal_random_states_draw_equal_patches(fitted, good_images):
    a, b = (BoundaryDisplay.from_estimator(fitted, good_images, n_patches=50, random_state=3) for _ in range(2))
    np.testing.assert_array_equal(a.good, b.good)


@pytest.mark.parametrize("synthesis", ["gaussian", None])
def test_other_syntheses_are_drawn_as_they_are(good_images, synthesis):
    params = {"synthesis": synthesis, "patch_score": "fused" if synthesis else "distance", "max_epochs": 1}
    display = BoundaryDisplay.from_estimator(small_detector(**params).fit(good_images), good_images[:3], n_patches=20)
    assert (display.synthetic is None) == (synthesis is None)


def test_tiles_have_patches_of_their_own():
    images = textured_images(4, side=96)
    detector = small_detector(tile=64, max_epochs=1).fit(images)
    mask = np.zeros((96, 96), bool)
    mask[40:56, 40:56] = True  # in all four tiles
    display = BoundaryDisplay.from_estimator(detector, images, [None, None, None, mask])
    assert len(display.real) >= 4 * 4
    assert CenterDisplay.from_estimator(detector, images).mean.shape == (4 * 4, 8, 8)


def test_labels_instead_of_masks_are_an_error(fitted, good_images):
    with pytest.raises(InvalidTargetError, match="masks contains labels; expected masks"):
        BoundaryDisplay.from_estimator(fitted, good_images[:2], [1, -1])
    whole = np.ones((2, 64, 64), bool)
    with pytest.raises(InvalidTargetError, match="masks mark defects in all 2 images: pass good ones too"):
        BoundaryDisplay.from_estimator(fitted, good_images[:2], whole)


def test_distances_to_mean_centers_and_after_training_are_what_loops_give(fitted, patch_features):
    t, u = patch_features
    display = CenterDisplay.from_estimator(fitted, textured_images(4, seed=8))
    mean, trained = t.mean(axis=0), fitted.center_.numpy()
    for i in range(4):
        assert display.mean[i].ravel() == pytest.approx(slow_distances(t[i], mean), rel=1e-3)
        assert display.trained[i].ravel() == pytest.approx(slow_distances(u[i], trained), rel=1e-3)
    assert display.aligned.shape == (4, 8, 8)


def test_maps_are_means_over_images_in_one_scale_and_histograms_hold_every_patch():
    rng = np.random.default_rng(0)
    groups = [rng.gamma(4, size=(5, 6, 7)) for _ in range(3)]
    groups[0][:, 0, 0] = np.nan  # a patch that is ignored in one image counts in others
    groups[0][0, 0, 0] = 2.5
    display = CenterDisplay.from_predictions(*groups)
    drawn = [ax.images[0] for ax in display.ax_[:3]]
    for image, group in zip(drawn, groups, strict=True):
        np.testing.assert_allclose(image.get_array(), np.nanmean(group, axis=0))
        assert image.get_clim() == drawn[0].get_clim()
    for patch in display.ax_[3].patches:
        assert patch.get_data().values.sum() == pytest.approx(1)
