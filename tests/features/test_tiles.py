"""Detectors with ``tile=`` see small defects in large images, and are used as others are."""

import copy
import pickle

import numpy as np
import pytest
import torch
from helpers import assert_equal_but_for_rounding, small_detector
from PIL import Image
from scipy import ndimage
from torch import nn

from skpbas.calibration import ConformalThreshold
from skpbas.core.maps import MapRenderer
from skpbas.core.model import PBASModel
from skpbas.scorers import AnomalyScorer

HEIGHT, WIDTH = 150, 220


def plates(n, seed=0, shape=(HEIGHT, WIDTH)):
    """Large cloudy surfaces with fine noise."""
    rng = np.random.default_rng(seed)
    clouds = ndimage.zoom(rng.normal(0, 40, (n, -(-shape[0] // 20), -(-shape[1] // 20))), (1, 20, 20), order=1)
    surface = 128 + clouds[:, : shape[0], : shape[1], None] + rng.normal(0, 4, (n, *shape, 3))
    return np.clip(surface, 0, 255).astype(np.uint8)


def spotted(n, seed=1, shape=(HEIGHT, WIDTH)):
    """Plates with a dark spot of 6 pixels each, and their masks."""
    images, masks = plates(n, seed, shape).copy(), np.zeros((n, *shape), bool)
    rng = np.random.default_rng(seed)
    for image, mask in zip(images, masks, strict=True):
        top, left = rng.integers(4, shape[0] - 10), rng.integers(4, shape[1] - 10)
        mask[top : top + 6, left : left + 6] = True
        image[mask] = image[mask] // 4
    return images, masks


def tiled(**params):
    quick = {"tile": 64, "image_size": 64, "max_epochs": 4, "precision": "float32", "n_exemplars": 512, **params}
    return small_detector(**quick).set_params(backbone="embedded")


@pytest.fixture(scope="module")
def detector():
    return tiled().fit(plates(8))


def test_maps_have_the_size_of_the_images_and_are_the_same_in_every_way_to_get_them(detector, tmp_path):
    images, _ = spotted(2)
    maps = detector.anomaly_map(images)
    assert detector.map_shape_ == (HEIGHT, WIDTH) == maps.shape[1:]
    np.testing.assert_array_equal(detector.anomaly_map(images, size="input"), maps)
    scores = detector.score_samples(images)
    for result, score, anomaly_map in zip(detector.score_stream(iter(images)), scores, maps, strict=True):
        assert result.score == score
        np.testing.assert_array_equal(result.map, anomaly_map)
    others = [
        pickle.loads(pickle.dumps(detector)),
        copy.deepcopy(detector).set_params(n_jobs=2),
        copy.deepcopy(detector).set_params(memory=tmp_path),  # writes
        copy.deepcopy(detector).set_params(memory=tmp_path),  # reads
    ]
    for other in others:
        np.testing.assert_allclose(other.score_samples(images), scores, rtol=5e-3)  # float16 in the cache


def test_the_model_alone_gives_the_same_scores_and_maps(detector):
    images, _ = spotted(2)
    model = detector.model_
    assert isinstance(model, PBASModel)
    tensor = torch.from_numpy(images).movedim(-1, 1)
    scores, maps = model(model.extractor.normalize(tensor))
    expected = torch.from_numpy(-detector.score_samples(images)).float()
    assert_equal_but_for_rounding(scores, expected, n_terms=384, n_layers=20)
    expected = torch.from_numpy(detector.anomaly_map(images))
    assert_equal_but_for_rounding(maps, expected, n_terms=384, n_layers=20)


def test_a_small_defect_is_found_that_resizing_hides():
    shape = (320, 480)
    good, (bad, masks) = plates(6, seed=2, shape=shape), spotted(6, shape=shape)
    X, y = [*good, *bad], [None] * 6 + list(masks)
    detector, whole = (tiled(tile=tile).fit(plates(6, shape=shape)) for tile in (64, None))
    found = AnomalyScorer(("image_auroc", "pixel_auroc", "neg_miss_rate"))(detector, X, y)
    hidden = AnomalyScorer(("image_auroc", "pixel_auroc"))(whole, X, y)
    assert found["image_auroc"] == 1.0
    assert found["neg_miss_rate"] == 0.0
    assert found["pixel_auroc"] > 0.97
    assert hidden["image_auroc"] < found["image_auroc"]
    assert (detector.predict(good) == 1).all()


class Patches(nn.Module):
    """Features of squares of 8 pixels, which no neighbor changes."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 12, 8, 8)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 8

    def forward(self, x):
        return self.a(x)


def test_the_map_of_tiles_is_that_of_the_whole_where_tiles_do_not_end():
    """Features have no context here, and upsampling reaches half a patch: 4 pixels from the edge that a tile shares."""
    images = spotted(3)[0][:, :160, :]
    images = np.pad(images, ((0, 0), (0, 10), (0, 0), (0, 0)), mode="reflect")[:, :, :120]  # 160 x 120
    params = {"layers": ["a"], "patch_size": 1, "smoothing_sigma": 0, "patch_score": "distance"}
    detector = tiled(**params).set_params(backbone=Patches()).fit(images)
    tiling = detector.model_.tiling
    assert (tiling.tops, tiling.lefts) == ([0, 48, 96], [0, 56])  # on the grid of patches
    whole = copy.deepcopy(detector.model_)
    whole.tiling, whole.renderer = None, MapRenderer((20, 15), (160, 120), 0.0)
    normalized = whole.extractor.normalize(torch.from_numpy(images).movedim(-1, 1))
    scores, maps = detector.model_(normalized)
    expected_scores, expected = whole(normalized)
    rows, columns = torch.ones(160, dtype=bool), torch.ones(120, dtype=bool)
    for seen, edges in ((rows, [48, 64, 96, 112]), (columns, [56, 64])):
        for edge in edges:
            seen[edge - 4 : edge + 4] = False
    inside = rows[:, None] & columns
    assert 0.6 < inside.float().mean() < 0.9
    assert rows[52:60].all()  # in the overlap of two tiles too
    assert_equal_but_for_rounding(maps[:, inside], expected[:, inside], n_terms=192, n_layers=4)
    assert_equal_but_for_rounding(scores, expected_scores, n_terms=192, n_layers=4)
    assert not torch.equal(maps, expected)


def test_the_score_of_an_image_is_that_of_its_most_anomalous_tile(detector):
    images, _ = spotted(2)
    model = detector.model_
    tiling, extractor, scorer = model.tiling, model.extractor, model.patch_scorer
    scores = []
    for image in torch.from_numpy(images).movedim(-1, 1):
        tiles = [tiling.tile(image, index)[None] for index in range(tiling.n_tiles)]
        of_tiles = [model.evidence(extractor.feature_maps(tile))[0] for tile in tiles]
        scores.append(-max(scorer.image_scores(of_tile, extractor.grid_shape).item() for of_tile in of_tiles))
    np.testing.assert_allclose(detector.score_samples(images), scores, rtol=1e-5)


@pytest.mark.parametrize("patch_score", ["fused", "discriminator", "distance"])
def test_the_share_of_contamination_is_of_images_and_not_of_tiles(patch_score):
    images = plates(8)
    detector = tiled(contamination=0.25, patch_score=patch_score).fit(images)
    assert detector.n_samples_fit_ == 8
    assert (detector.predict(images) == -1).sum() == 2
    if patch_score == "fused":
        expected = detector.model_.patch_scorer.training_scores
        assert expected.shape == (8,)
        np.testing.assert_allclose(-detector.score_samples(images), expected, rtol=1e-3)  # float16 in the store


def test_images_of_another_size_are_brought_to_that_of_the_training_images(detector, tmp_path):
    image = Image.fromarray(spotted(1)[0][0])
    larger = image.resize((2 * WIDTH, 2 * HEIGHT))
    larger.save(tmp_path / "larger.png")
    assert detector.anomaly_map([tmp_path / "larger.png"], size="input").shape == (1, 2 * HEIGHT, 2 * WIDTH)
    assert detector.anomaly_map([tmp_path / "larger.png"]).shape == (1, HEIGHT, WIDTH)


def test_tiles_are_shrunk_to_the_size_that_the_network_sees():
    images = plates(4)
    detector = tiled(tile=100, image_size=64, max_epochs=1).fit(images)
    assert detector.map_shape_ == (96, 141)
    assert detector.model_.extractor.image_size == (64, 64)


def test_images_narrower_than_a_tile_have_one_tile_across():
    images = plates(4)[:, :48]
    detector = tiled(max_epochs=1).fit(images)
    assert detector.map_shape_ == (48, 220)
    assert detector.model_.tiling.tile_shape == (48, 64)
    assert detector.anomaly_map(images).shape == (4, 48, 220)


def test_a_tile_larger_than_the_images_is_refused():
    with pytest.raises(ValueError, match=r"tile=64 is larger than the images, of 48 x 56 pixels.*tile=None"):
        tiled().fit(plates(4)[:, :48, :56])


def test_a_tile_that_would_magnify_images_beyond_reason_is_refused():
    with pytest.raises(ValueError, match=r"tile=4 with image_size=64 magnifies images 16 times.*tile=64 shows every"):
        tiled(tile=4).fit(plates(4))
    assert tiled(tile=16, max_epochs=1).fit(plates(2)[:, :32, :40]).map_shape_ == (128, 160)


def test_a_conformal_threshold_takes_tiles():
    threshold = ConformalThreshold(tiled(max_epochs=1), max_false_alarm_rate=0.2, random_state=0).fit(plates(16))
    bad, _ = spotted(3)
    assert (threshold.p_values(bad) <= 0.2).all()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"image_size": (64, 64)}, r"image_size=\(64, 64\) with tile=64: tiles are square"),
        ({"resize": "crop"}, 'resize="crop" with tile=64: tiles cover whole images'),
        ({"tile": 0}, "The 'tile' parameter of PBASDetector must be"),
    ],
)
def test_parameters_that_do_not_go_with_tiles_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        tiled(**params).fit(plates(2))
