"""Scorers: all forms of labels and masks against slow implementations, a single pass, and errors."""

import math
import pickle

import numpy as np
import pytest
import sklearn
from helpers import small_detector, textured_images
from PIL import Image, PngImagePlugin
from sklearn.dummy import DummyClassifier
from sklearn.metrics import f1_score, get_scorer, make_scorer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from skpbas import metrics
from skpbas.calibration import ConformalThreshold
from skpbas.errors import InvalidTargetError
from skpbas.masks import to_map_size
from skpbas.metrics import image_partial_auroc, miss_rate
from skpbas.scorers import (
    SCORERS,
    AnomalyScorer,
    image_ap_scorer,
    image_auroc_scorer,
    pixel_auroc_scorer,
    pixel_pro_scorer,
)

MAP_SHAPE = (8, 8)
LABELS = np.array([1, 1, 1, -1, -1])


class KnownDetector:
    """Returns known scores and anomaly maps, and records its calls."""

    def __init__(self, n=5, *, map_shape=MAP_SHAPE, resize="stretch", seed=0):
        rng = np.random.default_rng(seed)
        self.scores, self.maps = rng.normal(size=n), rng.random((n, *map_shape), dtype=np.float32)
        self.map_shape_, self.resize, self.calls = map_shape, resize, []

    def score_samples(self, X):
        self.calls.append("score_samples")
        return self.scores[: len(X)]

    def iter_scores_and_maps(self, X):
        self.calls.append("iter_scores_and_maps")
        return zip(self.scores.tolist()[: len(X)], self.maps, strict=False)


def images(n=5, shape=(16, 24)):
    return np.zeros((n, *shape), np.uint8)


def masks_for(labels, shape, seed=1):
    rng = np.random.default_rng(seed)
    masks = np.zeros((len(labels), *shape), bool)
    for i in np.flatnonzero(np.asarray(labels) == -1):
        top, left = rng.integers(0, shape[0] // 2), rng.integers(0, shape[1] // 2)
        masks[i, top : top + shape[0] // 3, left : left + shape[1] // 3] = True
    return masks


def resampled(mask, map_shape):
    """Nearest neighbor, pixel by pixel."""
    resized = np.zeros(map_shape, bool)
    for row in range(map_shape[0]):
        for column in range(map_shape[1]):
            source_row = math.floor((row + 0.5) * mask.shape[0] / map_shape[0])
            source_column = math.floor((column + 0.5) * mask.shape[1] / map_shape[1])
            resized[row, column] = mask[source_row, source_column]
    return resized


@pytest.mark.parametrize(
    "y",
    [
        LABELS,
        LABELS.astype(float),
        LABELS.tolist(),
        LABELS[:, None],
        LABELS.astype(object),
        (LABELS == -1).astype(int),
        LABELS == -1,
    ],
    ids=["+1/-1", "floats", "list", "column", "objects", "0/1", "booleans"],
)
def test_image_metrics_read_labels_in_each_encoding(y):
    detector = KnownDetector()
    assert image_auroc_scorer(detector, images(), y) == metrics.image_auroc(LABELS, -detector.scores)
    assert image_ap_scorer(detector, images(), y) == metrics.image_ap(LABELS, -detector.scores)


def test_image_metrics_read_masks():
    detector = KnownDetector()
    masks = [mask if mask.any() else None for mask in masks_for(LABELS, (16, 24))]
    assert image_auroc_scorer(detector, images(), masks) == metrics.image_auroc(LABELS, -detector.scores)


@pytest.mark.parametrize("name", ["pixel_auroc", "pixel_ap", "pixel_pro"])
def test_pixel_metrics_match_masks_resampled_pixel_by_pixel(name):
    detector = KnownDetector()
    masks = masks_for(LABELS, (16, 24))
    resized = np.stack([resampled(mask, MAP_SHAPE) for mask in masks])
    expected = getattr(metrics, name)(resized, detector.maps)
    assert SCORERS[name](detector, images(), masks) == expected
    assert SCORERS[name](detector, images(), resized) == expected


def test_with_crop_only_the_center_of_the_masks_counts():
    detector = KnownDetector(resize="crop")  # 16 x 32 becomes 8 x 16, cropped to the middle 8 x 8
    masks = masks_for(LABELS, (16, 32))
    masks[3:, :, 12] = True
    resized = np.stack([resampled(mask, (8, 16))[:, 4:12] for mask in masks])
    expected = metrics.pixel_auroc(resized, detector.maps)
    with pytest.warns(UserWarning, match=r'1 mask has .* outside the part .* resize="crop" keeps, 0 of them only'):
        assert pixel_auroc_scorer(detector, images(shape=(16, 32)), masks) == expected


@pytest.mark.parametrize("of_map", [False, True])
def test_crop_takes_masks_of_the_maps_size_only_where_it_cuts_nothing_off(of_map):
    detector, masks = KnownDetector(resize="crop"), masks_for(LABELS, MAP_SHAPE if of_map else (16, 16))
    resized = np.stack([resampled(mask, MAP_SHAPE) for mask in masks])
    expected = metrics.pixel_auroc(resized, detector.maps)
    assert pixel_auroc_scorer(detector, images(shape=(16, 16)), masks) == expected
    if of_map:
        with pytest.raises(
            InvalidTargetError, match=r"y\[0\] has the size of the anomaly map, 8 x 8 .*at the size .*16 x 24"
        ):
            pixel_auroc_scorer(detector, images(shape=(16, 24)), masks)


def test_masks_of_the_maps_size_are_refused_where_a_pipeline_may_have_cut_off_a_part():
    detector, masks = KnownDetector(), masks_for(LABELS, MAP_SHAPE)
    middle = FunctionTransformer(lambda X: X[:, 4:12, 6:18]).fit(images())
    pipeline = Pipeline([("middle", middle), ("detector", detector)])
    with pytest.raises(
        InvalidTargetError, match=r"y\[0\] has the size of the anomaly map, 8 x 8 .*the pipeline may have .*, 8 x 12$"
    ):
        pixel_auroc_scorer(pipeline, images(), masks)
    of_images = masks_for(LABELS, (8, 12))
    resized = np.stack([resampled(mask, MAP_SHAPE) for mask in of_images])
    assert pixel_auroc_scorer(pipeline, images(), of_images) == metrics.pixel_auroc(resized, detector.maps)
    with pytest.raises(InvalidTargetError, match=r"y\[0\] is 16 x 24; its image X\[0\] is 8 x 12"):
        pixel_auroc_scorer(pipeline, images(), masks_for(LABELS, (16, 24)))
    negative = FunctionTransformer(lambda X: 255 - X).fit(images())  # sizes stay: nothing can be cut off
    same_size = Pipeline([("negative", negative), ("detector", detector)])
    assert pixel_auroc_scorer(same_size, images(), masks) == metrics.pixel_auroc(masks, detector.maps)
    loaded = Pipeline([("load", FunctionTransformer(lambda names: images(len(names)))), ("detector", detector)])
    with pytest.raises(InvalidTargetError, match="the pipeline may have cut off a part"):
        pixel_auroc_scorer(loaded, list("abcde"), masks)


def test_a_threshold_around_a_detector_that_crops_is_scored_with_its_view():
    X = textured_images(24, side=96)[:, :64]
    masks = np.zeros((24, 64, 96), bool)
    masks[20:, 20:30, 60:75] = True  # nearest pixels of the whole image would lie elsewhere
    model = ConformalThreshold(small_detector(max_epochs=1, resize="crop"), max_false_alarm_rate=0.2, random_state=0)
    with pytest.warns(UserWarning, match="discards"):
        model.fit(X[:20])
    with pytest.warns(UserWarning, match="discards"):
        maps = model.anomaly_map(X)
    with pytest.warns(UserWarning, match="discards"):
        score = pixel_auroc_scorer(model, X, masks)
    assert score == metrics.pixel_auroc(masks[:, :, 16:80], maps)
    seen = to_map_size(masks, X, model)
    assert seen[0] is None
    np.testing.assert_array_equal(np.stack(seen[20:]), masks[20:, :, 16:80])


def test_images_in_a_tables_column_belong_to_masks_by_position():
    class Column:
        """Indexed by labels in reverse, as a column is whose rows were sorted."""

        dtype, name = object, "path"

        def __init__(self, values):
            self.values = values

        def __len__(self):
            return len(self.values)

        def to_numpy(self):
            return np.array(self.values, dtype=object)

        def __iter__(self):
            return iter(self.values)

        def __getitem__(self, label):
            return self.values[len(self) - 1 - label]

    shapes = [(16, 24), (16, 24), (24, 16), (16, 24), (24, 24)]
    masks = [masks_for([-1], shape)[0] for shape in shapes]
    X = [np.zeros(shape, np.uint8) for shape in shapes]
    detector = KnownDetector()
    assert pixel_auroc_scorer(detector, Column(X), masks) == pixel_auroc_scorer(detector, X, masks)


def test_defects_that_a_crop_leaves_out_are_named_where_no_metric_is_left():
    masks = np.zeros((5, 16, 32), bool)
    masks[3:, 4:9, :6] = True
    with (
        pytest.warns(UserWarning, match=r"2 masks have .*, 2 of them only there; the first is y\[3\]"),
        pytest.raises(
            InvalidTargetError, match=r'the defects of 2 masks are outside the part that resize="crop" keeps'
        ),
    ):
        pixel_auroc_scorer(KnownDetector(resize="crop"), images(shape=(16, 32)), masks)


def test_the_f1_that_sklearn_knows_by_name_is_that_of_normal_images():
    detector = DummyClassifier(strategy="constant", constant=1).fit(images(), LABELS)  # never finds an anomalous image
    assert get_scorer("f1")(detector, images(), LABELS) == 2 * 3 / (2 * 3 + 2)  # 3 normal images found, 2 wrongly
    assert make_scorer(f1_score, pos_label=-1)(detector, images(), LABELS) == 0


def test_masks_may_be_arrays_images_or_files_and_any_nonzero_pixel_counts(tmp_path):
    detector = KnownDetector()
    masks = masks_for(LABELS, (16, 24))
    gray = np.uint8(masks) * 7
    color = np.repeat(gray[..., None], 3, axis=3)
    opaque = np.concatenate([color, np.full((5, 16, 24, 1), 255, np.uint8)], axis=3)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, mask in zip(paths, gray, strict=True):
        Image.fromarray(mask).save(path)
    expected = pixel_auroc_scorer(detector, images(), masks)
    forms = {
        "floats": masks.astype(float),
        "PIL": [Image.fromarray(mask) for mask in gray],
        "color": [Image.fromarray(mask) for mask in color],
        "opaque": [Image.fromarray(mask) for mask in opaque],
        "paths": paths,
        "strings": [str(path) for path in paths],
        "None": [None, None, None, *gray[3:]],
        "mixed": [None, paths[1], gray[2], Image.fromarray(gray[3]), paths[4]],
    }
    for form, y in forms.items():
        assert pixel_auroc_scorer(detector, images(), y) == expected, form


def test_a_mask_matches_its_image_after_exif_rotation_without_decoding_it(tmp_path, monkeypatch):
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees: 16 x 24 pixels become 24 x 16
    for path in paths:
        Image.fromarray(images(1)[0]).save(path, exif=exif)
    detector, masks = KnownDetector(), masks_for(LABELS, (24, 16))
    resized = np.stack([resampled(mask, MAP_SHAPE) for mask in masks])

    def decoded(_self):
        raise AssertionError("decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decoded)
    assert pixel_auroc_scorer(detector, paths, masks) == metrics.pixel_auroc(resized, detector.maps)
    with pytest.raises(InvalidTargetError, match=r"y\[0\] is 16 x 24; its image X\[0\] \(.*0\.png\) is 24 x 16"):
        pixel_auroc_scorer(detector, paths, masks_for(LABELS, (16, 24)))


def test_several_metrics_come_from_one_pass():
    detector, masks = KnownDetector(), masks_for(LABELS, (16, 24))
    scores = AnomalyScorer(("pixel_pro", "image_auroc", "image_ap", "pixel_ap", "pixel_auroc"))(
        detector, images(), masks
    )
    assert detector.calls == ["iter_scores_and_maps"]
    assert list(scores) == ["pixel_pro", "image_auroc", "image_ap", "pixel_ap", "pixel_auroc"]
    assert scores == {name: SCORERS[name](detector, images(), masks) for name in scores}
    assert all(isinstance(score, float) for score in scores.values())


def test_image_metrics_alone_compute_no_anomaly_maps():
    detector = KnownDetector()
    AnomalyScorer(("image_auroc", "image_ap"))(detector, images(), LABELS)
    assert detector.calls == ["score_samples"]


def test_max_fpr_is_passed_to_pro():
    detector, masks = KnownDetector(), masks_for(LABELS, MAP_SHAPE)
    scorer = AnomalyScorer("pixel_pro", max_fpr=0.9)
    assert scorer(detector, images(), masks) == metrics.pixel_pro(masks, detector.maps, max_fpr=0.9)
    assert scorer(detector, images(), masks) != pixel_pro_scorer(detector, images(), masks)


def test_separate_masks_are_used_for_pixel_metrics_and_y_for_image_metrics():
    detector, masks = KnownDetector(), masks_for(LABELS, (16, 24))
    both = AnomalyScorer(("image_auroc", "pixel_auroc"))
    expected = both(detector, images(), masks)
    assert both(detector, images(), LABELS, masks=masks) == expected
    assert both(detector, images(), (LABELS == -1).astype(int), masks=masks) == expected
    assert both(detector, images(), masks=masks) == expected
    assert both(detector, images(), masks, masks=masks) == expected
    assert image_auroc_scorer(detector, images(), masks=masks) == expected["image_auroc"]


def test_a_detector_a_pipeline_and_a_search_have_the_same_scores(fitted, good_images):
    X = np.concatenate([good_images, 255 - good_images[:4]])
    masks = np.zeros((16, 64, 64), bool)
    masks[12:, 10:40, 20:50] = True
    scorer = AnomalyScorer(("image_auroc", "pixel_pro"))
    expected = {
        "image_auroc": metrics.image_auroc(masks.any(axis=(1, 2)), -fitted.score_samples(X)),
        "pixel_pro": metrics.pixel_pro(masks, fitted.anomaly_map(X)),
    }
    assert scorer(fitted, X, masks) == expected
    negative = FunctionTransformer(lambda images: 255 - images).fit(X)
    pipeline = Pipeline([("negative", negative), ("nothing", "passthrough"), ("detector", fitted)])
    assert scorer(pipeline, 255 - X, masks) == expected

    class FittedSearch:
        best_estimator_ = pipeline

    assert scorer(FittedSearch(), 255 - X, masks) == expected


def test_the_map_size_of_other_detectors_is_that_of_the_first_anomaly_map():
    detector, masks = KnownDetector(), masks_for(LABELS, (16, 24))
    expected = pixel_auroc_scorer(detector, images(), masks)
    del detector.map_shape_, detector.resize
    assert pixel_auroc_scorer(detector, images(), masks) == expected


def test_the_error_names_an_estimator_without_anomaly_maps():
    class ScoresOnly:
        def score_samples(self, X):
            return np.arange(len(X))

    assert image_auroc_scorer(ScoresOnly(), images(), LABELS) == 0.0
    with pytest.raises(TypeError, match=r"pixel_pro: expected an estimator with iter_scores_and_maps.*got ScoresOnly"):
        pixel_pro_scorer(ScoresOnly(), images(), masks_for(LABELS, (16, 24)))


# Invalid y -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, r"y is required for image_auroc and pixel_pro: .*\.synthetic_validation"),
        (LABELS, r"cannot compute pixel_pro from labels: pass masks as y .*set_score_request\(masks=True\)"),
        ([None] * 4, "y has 4 entries for 5 images"),
        ([1, 1, 2, 1, 3], r"y contains 1, 2, 3; expected \+1 for normal and -1 for anomalous images, or 0"),
        ([1, 0, -1, 1, 0], "y contains -1, 0, 1; expected"),
        (np.ones((5, 3)), r"y must be labels \(n,\) or masks \(n, H, W\), got shape \(5, 3\)"),
        (np.zeros((5, 3, 4)), r"y\[0\] is 3 x 4; its image X\[0\] is 16 x 24 and the anomaly map 8 x 8"),
        ([None, None, None, None, np.ones((16, 24, 3))], r"y\[4\]: a mask must be .* \(H, W\).*\(16, 24, 3\)"),
        ([None, None, "no/such.png", None, None], r"cannot read a mask: y\[2\] \(no/such.png\): no such file"),
        (["good", "bad", "good", "good", "good"], r'the words "bad", "good"; .*np\.where\(np\.asarray\(y\) == "good"'),
        ([None] * 5, "image_auroc cannot be computed: all 5 images are normal; .*NormalKFold.*undefined"),
        (np.zeros((5, 8, 8)), "image_auroc cannot be computed: all 5 images are normal"),
    ],
)
def test_invalid_y_is_rejected_with_what_was_expected(y, message):
    detector = KnownDetector()
    with pytest.raises(InvalidTargetError, match=message):
        AnomalyScorer(("image_auroc", "pixel_pro"))(detector, images(), y)
    assert "score_samples" not in detector.calls


@pytest.mark.parametrize(("value", "word"), [(1, "normal"), (-1, "anomalous"), (0, "normal")])
def test_labels_of_one_class_are_rejected_before_scoring(value, word):
    detector = KnownDetector()
    with pytest.raises(InvalidTargetError, match=f"image_auroc cannot be computed: all 5 images are {word}"):
        image_auroc_scorer(detector, images(), np.full(5, value))
    assert detector.calls == []


def test_empty_masks_and_defects_too_small_for_the_anomaly_map_are_rejected():
    with pytest.raises(InvalidTargetError, match="pixel_pro cannot be computed: all 5 images are normal, no mask"):
        pixel_pro_scorer(KnownDetector(), images(), [None] * 5)
    masks = np.zeros((5, 16, 24), bool)
    masks[3, 0, 0] = True  # skipped by nearest-neighbor resampling
    with pytest.raises(InvalidTargetError, match=r"the defects of 1 masks vanish.*increase image_size"):
        pixel_pro_scorer(KnownDetector(), images(), masks)


def test_an_undefined_metric_is_a_number_only_on_request():
    scorer = AnomalyScorer(("image_auroc", "pixel_pro"), undefined=float("nan"))
    scores = scorer(KnownDetector(), images(), [None] * 5)
    assert all(math.isnan(score) for score in scores.values())
    masks = masks_for([-1] * 5, (16, 24))
    scores = scorer(KnownDetector(), images(), masks)  # all anomalous: both classes of pixels, but not of images
    assert math.isnan(scores["image_auroc"])
    assert scores["pixel_pro"] == pixel_pro_scorer(KnownDetector(), images(), masks)


def test_contradictory_labels_and_masks_are_rejected():
    masks = masks_for(LABELS, (16, 24))
    with pytest.raises(InvalidTargetError, match=r"y\[3\] is anomalous, but masks\[3\] marks no pixel \(1 of 5"):
        pixel_pro_scorer(KnownDetector(), images(), LABELS, masks=[None] * 4 + [masks[4]])
    with pytest.raises(InvalidTargetError, match=r"y\[0\] is normal, but masks\[0\] marks pixels \(1 of 5"):
        pixel_pro_scorer(KnownDetector(), images(), LABELS, masks=[masks[4], None, None, masks[3], masks[4]])
    with pytest.raises(InvalidTargetError, match="masks contains labels"):
        pixel_pro_scorer(KnownDetector(), images(), LABELS, masks=LABELS)
    with pytest.raises(InvalidTargetError, match="masks has 2 entries for 5 images"):
        pixel_pro_scorer(KnownDetector(), images(), LABELS, masks=[None, None])


# Scorer objects --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": "auroc"}, r"metrics contains \['auroc'\]; expected names from"),
        ({"metrics": ("image_auroc", "f1")}, r"metrics contains \['f1'\]"),
        ({"metrics": ()}, "metrics is empty"),
        ({"max_fpr": 0}, "max_fpr is 0; expected a number in"),
        ({"max_fpr": "0.3"}, "max_fpr is '0.3'"),
        ({"undefined": "nan"}, "undefined is 'nan'; expected 'raise' or a number"),
    ],
)
def test_invalid_arguments_of_a_scorer_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        AnomalyScorer(**arguments)


def test_scorers_have_names_and_a_repr():
    five = {"image_ap", "image_auroc", "pixel_ap", "pixel_auroc", "pixel_pro"}
    assert set(SCORERS) == five | {"image_partial_auroc", "neg_miss_rate"}
    assert {name: scorer.metrics for name, scorer in SCORERS.items()} == {name: name for name in SCORERS}
    assert repr(pixel_pro_scorer) == "AnomalyScorer('pixel_pro')"
    assert repr(AnomalyScorer()) == "AnomalyScorer()"
    assert set(AnomalyScorer().metrics) == five
    assert set(AnomalyScorer(SCORERS).metrics) == set(SCORERS)
    scorer = AnomalyScorer(["pixel_pro", "image_ap"], max_fpr=0.1, max_image_fpr=0.02, undefined=0.0)
    assert repr(eval(repr(scorer))) == repr(scorer)  # noqa: S307


def test_scorers_of_low_false_alarm_rates_are_higher_for_better_detectors():
    masks, detector = masks_for(LABELS, (16, 24)), KnownDetector()
    scores = -detector.score_samples(images())
    for limit in (0.05, 0.4):
        values = AnomalyScorer(("neg_miss_rate", "image_partial_auroc"), max_image_fpr=limit)(detector, images(), masks)
        assert values["neg_miss_rate"] == -miss_rate(LABELS, scores, limit)
        assert values["image_partial_auroc"] == image_partial_auroc(LABELS, scores, limit)
    with pytest.raises(ValueError, match="max_image_fpr is 0; expected a number in"):
        AnomalyScorer("neg_miss_rate", max_image_fpr=0)


def test_a_pickled_scorer_gives_the_same_scores():
    detector, masks = KnownDetector(), masks_for(LABELS, (16, 24))
    for scorer in (pixel_pro_scorer, AnomalyScorer(("image_ap", "pixel_pro"), max_fpr=0.2)):
        copy = pickle.loads(pickle.dumps(scorer))
        assert copy(detector, images(), masks) == scorer(detector, images(), masks)
        assert repr(copy) == repr(scorer)


def test_set_score_request_modifies_own_scorers_and_copies_shared_ones():
    with pytest.raises(RuntimeError, match=r"enable_metadata_routing=True.*pass masks as y"):
        pixel_pro_scorer.set_score_request(masks=True)
    with sklearn.config_context(enable_metadata_routing=True):
        own = AnomalyScorer("pixel_pro")
        assert own.set_score_request(masks=True) is own
        assert own.get_metadata_routing().score.requests == {"masks": True}
        routed = pixel_pro_scorer.set_score_request(masks="truth")
        assert routed is not pixel_pro_scorer
        assert routed.get_metadata_routing().score.requests == {"masks": "truth"}
        assert pickle.loads(pickle.dumps(routed)).get_metadata_routing().score.requests == {"masks": "truth"}
    assert pixel_pro_scorer.get_metadata_routing().score.requests == {"masks": None}


def test_an_unfitted_detector_is_rejected(good_images):
    with pytest.raises(sklearn.exceptions.NotFittedError):
        image_auroc_scorer(small_detector(), good_images[:5], LABELS)
