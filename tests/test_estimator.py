"""The behavior of the estimator, method by method."""

import copy
import pickle
import subprocess
import sys
import warnings

import joblib
import numpy as np
import pytest
import torch
from helpers import small_detector, textured_images
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

from skpbas import PBASDetector, presets
from skpbas.errors import InvalidImageError, InvalidTargetError, TrainingError


@pytest.fixture(scope="module")
def corrupted(good_images):
    """Normal images, each with a patch of noise."""
    images = good_images.copy()
    images[:, 20:40, 20:40] = np.random.default_rng(1).integers(0, 256, (len(images), 20, 20, 3))
    return images


def test_corrupted_images_score_as_more_anomalous_at_the_corruption(fitted, good_images, corrupted):
    assert fitted.score_samples(corrupted).max() < fitted.score_samples(good_images).min()
    maps = fitted.anomaly_map(corrupted)
    assert maps[:, 24:36, 24:36].mean() > 1.2 * maps[:, :, 50:].mean()


def test_the_decision_is_the_score_minus_the_offset_and_labels_are_its_sign(fitted, good_images, corrupted):
    X = np.concatenate([good_images, corrupted])
    decision = fitted.decision_function(X)
    np.testing.assert_array_equal(decision, fitted.score_samples(X) - fitted.offset_)
    np.testing.assert_array_equal(fitted.predict(X), np.where(decision < 0, -1, 1))
    assert decision.dtype == np.float64
    assert fitted.score_samples(X).dtype == np.float64
    assert fitted.predict(X).dtype.kind == "i"


def test_the_same_image_scores_the_same_in_any_batch(fitted, good_images):
    together = fitted.score_samples(good_images)
    alone = np.concatenate([fitted.score_samples(image[None]) for image in good_images])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together[::-1], fitted.score_samples(good_images[::-1]))


def test_scores_still_rank_if_probabilities_round_to_one(good_images, corrupted):
    fitted = small_detector(patch_score="discriminator").fit(good_images)
    fitted.model_.whole_images = None
    detector = copy.deepcopy(fitted)
    detector.model_.patch_scorer.output.mul_(1e4)
    scores = detector.score_samples(corrupted)
    assert (torch.sigmoid(torch.from_numpy(-scores).float()) == 1).all()
    assert len(np.unique(scores)) == len(corrupted)
    np.testing.assert_array_equal(np.argsort(scores), np.argsort(fitted.score_samples(corrupted)))


def test_fused_scores_still_rank_if_probabilities_round_to_one(fitted, corrupted):
    detector = copy.deepcopy(fitted)
    detector.model_.patch_scorer.discriminator.output.mul_(1e4)
    assert len(np.unique(detector.score_samples(corrupted))) == len(corrupted)


@pytest.mark.parametrize("score", ["discriminator", "distance", "fused"])
def test_every_score_detects_corruption_and_gives_anomaly_maps_in_the_unit_interval(score, good_images, corrupted):
    # pretrained features: with random ones the discriminator alone localizes well for some seeds only
    detector = small_detector(patch_score=score, image_size=128, max_epochs=30).set_params(backbone="embedded")
    detector.fit(good_images)
    assert detector.score_samples(corrupted).max() < detector.score_samples(good_images).min()
    maps = detector.anomaly_map(corrupted)
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert maps[:, 48:72, 48:72].mean() > 1.1 * maps[:, :, 100:].mean()


def test_anomaly_maps_have_the_model_size_and_are_in_the_unit_interval(fitted, good_images):
    maps = fitted.anomaly_map(good_images)
    assert maps.shape == (len(good_images), *fitted.map_shape_)
    assert maps.dtype == np.float32
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_anomaly_maps_at_input_size_have_the_size_of_each_image(fitted):
    X = [textured_images(1, side)[0] for side in (48, 64, 100)]
    maps = fitted.anomaly_map(X, size="input")
    assert [m.shape for m in maps] == [(48, 48), (64, 64), (100, 100)]
    np.testing.assert_allclose(maps[1], fitted.anomaly_map(X[1:2])[0], atol=1e-6)
    assert fitted.anomaly_map(X[:1] * 2, size="input").shape == (2, 48, 48)
    with pytest.raises(ValueError, match="size='original': choose 'model' or 'input'"):
        fitted.anomaly_map(X, size="original")


def test_scores_and_anomaly_maps_can_be_iterated_in_one_pass(fitted, good_images):
    pairs = list(fitted.iter_scores_and_maps(good_images))
    np.testing.assert_array_equal([score for score, _ in pairs], fitted.score_samples(good_images))
    np.testing.assert_array_equal(list(fitted.iter_anomaly_maps(good_images)), fitted.anomaly_map(good_images))


def test_iterating_anomaly_maps_reads_images_lazily(fitted, good_images, tmp_path):
    Image.fromarray(good_images[0]).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    maps = fitted.iter_anomaly_maps([tmp_path / "good.png", tmp_path / "bad.png"])
    assert next(maps).shape == (64, 64)
    with pytest.raises(InvalidImageError, match=r"bad\.png"):
        next(maps)


def test_crop_leaves_nan_outside_the_view_and_warns():
    wide = textured_images(4, 64)[:, :, :, :]
    wide = np.concatenate([wide, wide], axis=2)
    with pytest.warns(UserWarning, match=r'resize="crop" discards up to 50% of the area of 4 of 4'):
        detector = small_detector(resize="crop", max_epochs=1).fit(wide)
    with pytest.warns(UserWarning, match="discards up to 50%"):
        maps = detector.anomaly_map(wide, size="input")
    assert maps.shape == (4, 64, 128)
    assert np.isnan(maps[:, :, :31]).all()
    assert np.isfinite(maps[:, :, 33:95]).all()


def test_the_same_seed_gives_the_same_detector_for_any_global_seed(good_images):
    first = small_detector(random_state=3).fit(good_images)
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(99)
    second = small_detector(random_state=3).fit(good_images)
    other = small_detector(random_state=4).fit(good_images)
    np.testing.assert_array_equal(first.score_samples(good_images), second.score_samples(good_images))
    assert not np.array_equal(first.score_samples(good_images), other.score_samples(good_images))


@pytest.mark.parametrize("random_state", [0, None])
def test_fitting_and_scoring_do_not_change_the_global_random_states(good_images, random_state):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    threads = torch.get_num_threads()
    small_detector(max_epochs=1, random_state=random_state).fit(good_images).anomaly_map(good_images[:2])
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("method", ["joblib", "pickle", "deepcopy"])
def test_copies_score_the_same(fitted, good_images, tmp_path, method):
    if method == "joblib":
        joblib.dump(fitted, tmp_path / "detector.joblib")
        copied = joblib.load(tmp_path / "detector.joblib")
    else:
        copied = pickle.loads(pickle.dumps(fitted)) if method == "pickle" else copy.deepcopy(fitted)
    np.testing.assert_array_equal(copied.score_samples(good_images), fitted.score_samples(good_images))
    np.testing.assert_array_equal(copied.anomaly_map(good_images), fitted.anomaly_map(good_images))


def test_a_detector_fitted_on_another_device_is_pickled_from_the_cpu_and_loads_there(fitted, good_images, monkeypatch):
    detector = copy.deepcopy(fitted)
    moved = []
    original = nn.Module.to
    monkeypatch.setattr(
        nn.Module, "to", lambda self, *a: (moved.append((type(self).__name__, a)), original(self, *a))[1]
    )
    detector.device_ = torch.device("cuda")  # as if fitted there
    content = pickle.dumps(detector)
    assert ("FeatureExtractor", ("cpu",)) in moved
    assert ("Discriminator", ("cpu",)) in moved
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="computed on cuda"):
        opened = pickle.loads(content)
    assert opened.device_ == torch.device("cpu")
    np.testing.assert_array_equal(opened.score_samples(good_images), fitted.score_samples(good_images))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_detector_fitted_on_cuda_loads_in_a_process_without_cuda(good_images, tmp_path):
    detector = small_detector(device="cuda").fit(good_images)
    assert detector.center_.is_cuda
    joblib.dump(detector, tmp_path / "d.joblib")
    np.save(tmp_path / "x.npy", good_images)
    code = (
        "import joblib, numpy as np; d = joblib.load('d.joblib'); assert d.device_.type == 'cpu'; "
        "np.save('s.npy', d.score_samples(np.load('x.npy')))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env={"CUDA_VISIBLE_DEVICES": ""})
    np.testing.assert_allclose(np.load(tmp_path / "s.npy"), detector.score_samples(good_images), atol=1e-3)


@pytest.mark.parametrize("center_init", ["alignment", "mean", "ema", "kmeans"])
def test_every_center_init_works(good_images, center_init):
    detector = small_detector(center_init=center_init, max_epochs=1).fit(good_images)
    assert detector.center_.shape == (64, 384)
    assert np.isfinite(detector.score_samples(good_images)).all()


def test_without_synthesis_images_are_scored_by_distance(good_images, corrupted):
    detector = small_detector(synthesis=None).fit(good_images)
    assert detector.discriminator_ is None
    assert set(detector.loss_curve_) == {"loss", "center"}
    features = detector.feature_extractor_(torch.from_numpy(corrupted[:1]).movedim(-1, 1))
    u = detector.projector_(features)[0].detach()
    nearest = torch.nn.functional.cosine_similarity(u[:, None], detector.center_[None], dim=2).argmax(1)
    expected = (u - detector.center_[nearest]).norm(dim=1).max()
    detector.model_.whole_images = None
    assert -detector.score_samples(corrupted[:1])[0] == pytest.approx(expected.item(), rel=1e-5)
    maps = detector.anomaly_map(corrupted)
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_gaussian_synthesis_trains_a_discriminator(good_images):
    detector = small_detector(synthesis="gaussian").fit(good_images)
    assert detector.loss_curve_["anomaly"][-1] < detector.loss_curve_["anomaly"][0]


def test_the_loss_curve_has_the_mean_of_every_term_per_epoch(fitted):
    assert {name: len(curve) for name, curve in fitted.loss_curve_.items()} == dict.fromkeys(
        ("loss", "center", "normal", "anomaly"), 10
    )
    terms = np.array([fitted.loss_curve_[name] for name in ("center", "normal", "anomaly")])
    np.testing.assert_allclose(terms.sum(0), fitted.loss_curve_["loss"])
    assert fitted.n_iter_ == 10


def test_features_are_extracted_once_per_fit(good_images):
    class Counting(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 8, 2, 2)

        def forward(self, x):
            Counting.calls += len(x)
            return self.b(self.a(x))

    small = small_detector(layers=("a", "b"), max_epochs=4)
    small.set_params(backbone=Counting()).fit(good_images)
    assert Counting.calls == len(good_images) + 1  # and one blank image to get the level shapes


def test_max_epochs_auto_gives_enough_steps_for_few_images_and_enough_epochs_for_many():
    from skpbas._training.settings import SUFFICIENT_EPOCHS, SUFFICIENT_STEPS, n_epochs

    settings = small_detector(max_epochs="auto")._training_settings()
    for n_images in (2, 8, 60, 209, 1000, 20000):
        epochs, steps_per_epoch = n_epochs(settings, n_images), -(-n_images // 8)
        assert epochs >= SUFFICIENT_EPOCHS
        assert epochs * steps_per_epoch >= SUFFICIENT_STEPS
        fewer = epochs - 1  # but no more than needed
        assert fewer < SUFFICIENT_EPOCHS or fewer * steps_per_epoch < SUFFICIENT_STEPS


def test_contamination_is_the_fraction_of_training_images_flagged(good_images, corrupted):
    detector = small_detector(contamination=0.25, precision="float32").fit(good_images)
    assert (detector.predict(good_images) == -1).sum() == 3
    assert (detector.predict(corrupted) == -1).all()


@pytest.mark.parametrize("patch_score", ["fused", "discriminator", "distance"])
def test_bfloat16_changes_scores_by_no_more_than_its_rounding(good_images, corrupted, patch_score):
    detector = small_detector(precision="float32", patch_score=patch_score).fit(good_images)
    X = np.concatenate([good_images, corrupted])
    exact, model = detector.score_samples(X), detector.model_
    if patch_score == "discriminator":  # logits may cancel: rounding scales with the hidden layer
        hidden = model.patch_scorer.hidden(model.extractor.aggregator.pool(model.extractor.feature_maps(to_tensor(X))))
        scale = float(hidden.abs().amax() * model.patch_scorer.output.abs().sum())
    else:
        scale = np.abs(exact).max()
    bound = 2 * torch.finfo(torch.bfloat16).eps * scale  # features and products are each rounded once
    for backbone, head in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)):
        model.extractor.precision, model.patch_scorer.precision = backbone, head
        rounded = detector.score_samples(X)
        np.testing.assert_allclose(rounded, exact, rtol=0, atol=bound)
        assert np.array_equal(rounded, exact) == (patch_score == "distance" and backbone == torch.float32)


@pytest.mark.parametrize(
    ("precision", "backbone", "head"),
    [("float32", torch.float32, torch.float32), ("bfloat16", torch.bfloat16, torch.bfloat16)],
)
def test_precision_applies_to_backbone_and_scorer_and_detects_the_same_defects(
    good_images, corrupted, precision, backbone, head
):
    detector = small_detector(precision=precision).fit(good_images)
    assert detector.model_.extractor.precision == backbone
    assert detector.model_.patch_scorer.precision == head
    assert detector.score_samples(corrupted).max() < detector.score_samples(good_images).min()


def to_tensor(images):
    return torch.from_numpy(images.copy()).movedim(-1, 1)


def test_values_too_large_for_float16_give_finite_scores(good_images):
    class Loud(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.AvgPool2d(8)

        def forward(self, x):
            return self.a(x * 1e6)

    detector = PBASDetector(Loud(), layers=["a"], image_size=64, max_epochs=1, device="cpu", random_state=0)
    assert np.isfinite(detector.fit(good_images).score_samples(good_images)).all()


def test_rows_labeled_anomalous_are_excluded_from_training(good_images, corrupted):
    X = np.concatenate([good_images, corrupted])
    labels = np.repeat([1, -1], [len(good_images), len(corrupted)])
    masks = np.zeros((len(X), 64, 64), bool)
    masks[len(good_images) :, 20:40, 20:40] = True
    expected = small_detector(max_epochs=1).fit(good_images).score_samples(X)
    for y in (
        labels,
        labels.astype(float),
        labels.astype(object),
        list(labels),
        masks,
        [m if m.any() else None for m in masks],
    ):
        detector = small_detector(max_epochs=1).fit(X, y)
        assert detector.n_samples_fit_ == len(good_images)
        np.testing.assert_array_equal(detector.score_samples(X), expected)


@pytest.mark.parametrize(
    ("y", "reason"),
    [
        ([1, 1], "2 entries for 12 images"),
        (np.ones((12, 3)), r"shape \(12, 3\)"),
        (5, "got int"),
        (-np.ones(12), "y marks 0 of 12 as normal"),
        (np.arange(12) % 2, r"y contains 0, 1; .*np\.where\(y == 1, -1, 1\)"),
        (np.arange(12) % 2 == 1, r"y contains False, True; .*np\.where\(y, -1, 1\)"),
        (["good", "cut"] * 6, r'np\.where\(np\.asarray\(y\) == "good", 1, -1\)'),
    ],
)
def test_y_that_does_not_match_x_is_rejected(good_images, y, reason):
    error = InvalidImageError if "marks" in reason else InvalidTargetError
    with pytest.raises(error, match=reason):
        small_detector().fit(good_images, y)


def test_fewer_than_two_images_are_rejected(good_images):
    with pytest.raises(InvalidImageError, match="at least 2 normal images, got 1"):
        small_detector().fit(good_images[:1])


def test_two_images_are_enough_to_run(good_images):
    detector = small_detector(max_epochs=2).fit(good_images[:2])
    assert np.isfinite(detector.decision_function(good_images)).all()


@pytest.mark.parametrize(
    ("parameter", "value", "reason"),
    [
        ("backbone", "vgg16", "'backbone' parameter of PBASDetector must be"),
        ("patch_size", 2, "patch_size=2: expected an odd number"),
        ("patch_size", 0, "patch_size"),
        ("layers", (), "expected one or more distinct names"),
        ("layers", ("layer2", "layer2"), "distinct names"),
        ("feature_dim", 0, "feature_dim"),
        ("image_size", (64, 64, 3), r"expected a side or \(height, width\)"),
        ("image_size", 0, "image_size"),
        ("resize", "pad", "'resize' parameter .* must be a str among"),
        ("center_init", "median", "center_init"),
        ("center_momentum", 0, "center_momentum"),
        ("synthesis", "perlin", "synthesis"),
        ("alpha", -1, "alpha"),
        ("contamination", 0.6, "contamination"),
        ("contamination", "some", "contamination"),
        ("false_alarm_rate", 0, "false_alarm_rate"),
        ("false_alarm_rate", 0.6, "false_alarm_rate"),
        ("device", "tpu9000", "device='tpu9000'"),
        ("precision", "int8", "precision"),
        ("schedule", "linear", "schedule"),
        ("patches_per_step", 0, "patches_per_step"),
        ("max_epochs", 0, "max_epochs"),
        ("n_jobs", 0, "n_jobs"),
    ],
)
def test_errors_name_the_invalid_parameter_and_its_valid_values(good_images, parameter, value, reason):
    with pytest.raises(ValueError, match=reason):
        small_detector().set_params(**{parameter: value}).fit(good_images)


def test_an_unavailable_device_is_rejected(good_images, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda' is not available"):
        small_detector(device="cuda").fit(good_images)


def test_a_diverging_loss_raises_an_error(good_images):
    detector = small_detector(projector_lr=1e30, synthesis=None, schedule="constant")
    with pytest.raises(TrainingError, match="lower projector_lr"):
        detector.fit(good_images)
    assert not hasattr(detector, "offset_")


def test_methods_before_fit_raise_not_fitted_error(good_images):
    for method in ("predict", "score_samples", "decision_function", "anomaly_map", "iter_anomaly_maps"):
        with pytest.raises(NotFittedError):
            getattr(PBASDetector(), method)(good_images)


def test_clone_and_params_round_trip():
    detector = PBASDetector("resnet18", alpha=0.5, layers=("layer1",))
    assert clone(detector).get_params() == detector.get_params()
    assert detector.set_params(alpha=0.1).get_params()["alpha"] == 0.1


def test_every_parameter_but_the_backbone_is_keyword_only():
    with pytest.raises(TypeError):
        PBASDetector("resnet18", None)


def test_presets_are_valid_parameters_with_the_published_settings():
    for preset, epochs, side, alpha in ((presets.PAPER, 400, 256, 0.3), (presets.REFERENCE, 640, 288, 0.25)):
        detector = PBASDetector(**preset)
        assert (detector.max_epochs, detector.image_size, detector.alpha) == (epochs, side, alpha)
        assert (detector.patches_per_step, detector.schedule, detector.resize) == (None, "constant", "crop")
        assert (detector.projector_lr, detector.discriminator_lr) == (1e-4, 2e-4)


def test_fit_is_quiet_and_verbose_is_not(good_images, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_detector().fit(good_images)
    assert capfd.readouterr() == ("", "")
    small_detector(verbose=1).fit(good_images)
    assert "training" in capfd.readouterr().err
    small_detector(verbose=2, max_epochs=3).fit(good_images)
    assert len(capfd.readouterr().out.strip().splitlines()) == 2 + 3  # a header and one line per epoch


def test_reading_with_threads_gives_the_same_detector(good_images, tmp_path):
    paths = []
    for i, image in enumerate(good_images):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    one = small_detector(max_epochs=1).fit(paths)
    two = small_detector(max_epochs=1, n_jobs=2).fit(paths)
    np.testing.assert_array_equal(one.score_samples(paths), two.score_samples(paths))
    np.testing.assert_array_equal(one.score_samples(paths), one.score_samples(good_images))


def test_a_keyboard_interrupt_during_training_propagates(good_images, monkeypatch):
    from skpbas.core.objective import PBASObjective

    def interrupted(self, features):
        raise KeyboardInterrupt

    monkeypatch.setattr(PBASObjective, "forward", interrupted)
    detector = small_detector()
    with pytest.raises(KeyboardInterrupt):
        detector.fit(good_images)
    assert not hasattr(detector, "offset_")


def test_imports_are_lazy_and_the_core_needs_no_sklearn():
    code = (
        "import sys, skpbas, skpbas.core.objective, skpbas.core.maps, skpbas.core.backbones; "
        "assert not {'sklearn', 'skorch', 'torchvision'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
