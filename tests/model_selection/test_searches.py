"""scikit-learn model selection with labels and masks, arrays and files; and the cost of a search."""

import json
import math
import shutil
import sys
import warnings

import numpy as np
import pytest
import sklearn
from helpers import ROOT, textured_images
from PIL import Image
from scipy.stats import uniform
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    RandomizedSearchCV,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
    validation_curve,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from skpbas import PBASDetector, metrics
from skpbas._inputs.images import ImageSequence
from skpbas.core.backbones import FeatureExtractor
from skpbas.errors import InvalidTargetError
from skpbas.model_selection import GroupNormalKFold, NormalKFold, NormalShuffleSplit, synthetic_validation
from skpbas.scorers import SCORERS, AnomalyScorer, image_auroc_scorer, pixel_pro_scorer

sys.path.insert(0, str(ROOT / "benchmarks"))

N_NORMAL, N_ANOMALOUS, SIDE = 9, 5, 32
CV = NormalKFold(3)


def quick_detector(**params):
    """A detector that fits in a tenth of a second."""
    recipe = {"max_epochs": 1, "hidden_dim": 16, "patch_score": "discriminator", "contamination": 0.1, "alpha": 1.0}
    return PBASDetector("embedded", **{"image_size": SIDE, "device": "cpu", "random_state": 0, **recipe, **params})


def scratched_images():
    images = textured_images(N_NORMAL + N_ANOMALOUS, side=48)
    masks = np.zeros(images.shape[:3], bool)
    for i in range(N_NORMAL, len(images)):
        masks[i, 10 + i : 20 + i, 8:40] = True
    images[masks] = 255 - images[masks]
    return images, masks, np.where(masks.any(axis=(1, 2)), -1, 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same images and ground truth in every accepted form of X and y."""
    images, masks, labels = scratched_images()
    folder = tmp_path_factory.mktemp("parts")
    paths, mask_paths = [], []
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        paths.append(folder / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
        mask_paths.append(folder / f"{i}_mask.png" if mask.any() else None)
        if mask.any():
            Image.fromarray(np.uint8(mask) * 255).save(mask_paths[-1])
    return {
        "arrays": images,
        "paths": paths,
        "labels": labels,
        "masks": masks,
        "masks or None": [mask if mask.any() else None for mask in masks],
        "paths of masks": mask_paths,
    }


FORMS = [("arrays", "labels"), ("arrays", "masks"), ("paths", "masks or None"), ("paths", "paths of masks")]


@pytest.mark.parametrize(("X", "y"), FORMS)
def test_a_grid_search_selects_by_its_scorer_and_refits_on_normal_images(X, y, data):
    scorer = image_auroc_scorer if y == "labels" else pixel_pro_scorer
    grid = {"alpha": [0.3, 2.0], "patch_size": [1]}
    search = GridSearchCV(quick_detector(), grid, scoring=scorer, cv=CV, error_score="raise").fit(data[X], data[y])
    assert search.best_score_ == search.cv_results_["mean_test_score"].max()
    assert search.best_estimator_.n_samples_fit_ == N_NORMAL
    manual = quick_detector(**search.best_params_)
    scores = []
    for train, test in CV.split(data[X], data[y]):
        manual.fit(data["arrays"][train])
        if y == "labels":
            scores.append(metrics.image_auroc(data["labels"][test], -manual.score_samples(data["arrays"][test])))
        else:
            rows = np.int64((np.arange(SIDE) + 0.5) * 48 / SIDE)
            seen = data["masks"][test][:, rows][:, :, rows]
            scores.append(metrics.pixel_pro(seen, manual.anomaly_map(data["arrays"][test])))
    found = [search.cv_results_[f"split{fold}_test_score"][search.best_index_] for fold in range(3)]
    np.testing.assert_array_equal(found, scores)


def test_all_forms_of_the_same_ground_truth_give_the_same_scores(data):
    scores = {
        form: cross_val_score(quick_detector(), data[form[0]], data[form[1]], scoring=image_auroc_scorer, cv=CV)
        for form in FORMS
    }
    for found in scores.values():
        np.testing.assert_array_equal(found, scores[FORMS[0]])


def test_a_search_with_several_metrics_refits_by_one_of_them(data):
    search = GridSearchCV(
        quick_detector(),
        {"alpha": [0.3, 2.0]},
        scoring=AnomalyScorer(("image_auroc", "pixel_pro")),
        refit="pixel_pro",
        cv=CV,
        error_score="raise",
    ).fit(data["paths"], data["paths of masks"])
    results = search.cv_results_
    assert search.best_index_ == np.argmax(results["mean_test_pixel_pro"])
    by_name = GridSearchCV(
        quick_detector(), {"alpha": [0.3, 2.0]}, scoring=SCORERS, refit="pixel_pro", cv=CV, error_score="raise"
    ).fit(data["paths"], data["paths of masks"])
    for name in ("image_auroc", "pixel_pro"):
        np.testing.assert_array_equal(by_name.cv_results_[f"mean_test_{name}"], results[f"mean_test_{name}"])


def test_a_fitted_search_scores_and_predicts_like_its_best_detector(data):
    search = GridSearchCV(quick_detector(), {"alpha": [0.3]}, scoring=image_auroc_scorer, cv=CV, error_score="raise")
    search.fit(data["arrays"], data["labels"])
    best = search.best_estimator_
    assert search.score(data["arrays"], data["labels"]) == image_auroc_scorer(best, data["arrays"], data["labels"])
    assert pixel_pro_scorer(search, data["arrays"], data["masks"]) == pixel_pro_scorer(
        best, data["arrays"], data["masks"]
    )
    np.testing.assert_array_equal(search.predict(data["paths"]), best.predict(data["paths"]))


def test_a_randomized_search_draws_from_distributions(data):
    search = RandomizedSearchCV(
        quick_detector(),
        {"alpha": uniform(0.1, 1.0), "patch_size": [1, 3, 5]},
        n_iter=3,
        scoring=pixel_pro_scorer,
        cv=NormalShuffleSplit(2, random_state=0),
        random_state=0,
        error_score="raise",
    ).fit(data["arrays"], data["masks"])
    assert len(set(search.cv_results_["param_alpha"])) == 3
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize(("resource", "least", "most"), [("max_epochs", 1, 2), ("n_samples", 14, 28)])
def test_a_halving_search_increases_epochs_or_images(resource, least, most, data):
    X, y = np.concatenate([data["arrays"]] * 2), np.concatenate([data["labels"]] * 2)
    search = HalvingGridSearchCV(
        quick_detector(),
        {"alpha": [0.3, 2.0]},
        resource=resource,
        min_resources=least,
        max_resources=most,
        factor=2,
        scoring=image_auroc_scorer,
        cv=NormalKFold(2),
        return_train_score=False,  # training images are all normal
        random_state=0,
        error_score="raise",
    ).fit(X, y)
    assert search.n_resources_ == [least, most]
    assert search.n_candidates_ == [2, 1]
    assert search.best_estimator_.n_samples_fit_ == 2 * N_NORMAL


def test_cross_validate_returns_every_metric_and_the_detectors(data):
    results = cross_validate(
        quick_detector(),
        data["paths"],
        data["masks or None"],
        scoring=AnomalyScorer(("image_auroc", "pixel_auroc")),
        cv=CV,
        return_estimator=True,
        error_score="raise",
    )
    assert results["test_image_auroc"].shape == results["test_pixel_auroc"].shape == (3,)
    assert [detector.n_samples_fit_ for detector in results["estimator"]] == [6, 6, 6]


@pytest.mark.parametrize(("X", "y"), FORMS)
def test_every_image_is_predicted_by_a_detector_that_has_not_seen_it(X, y, data):
    predicted = cross_val_predict(quick_detector(), data[X], data[y], cv=CV)
    for train, test in CV.split(data[X], data[y]):
        fitted = quick_detector().fit(data["arrays"][train])
        np.testing.assert_array_equal(predicted[test], fitted.predict(data["arrays"][test]))


def test_decision_functions_are_cross_predicted_with_explicit_splits_and_no_y(data):
    # With y, sklearn reads classes_, which outlier detectors do not have.
    with pytest.raises(AttributeError, match="classes_"):
        cross_val_predict(
            IsolationForest(n_estimators=2), np.eye(14), data["labels"], cv=CV, method="decision_function"
        )
    folds = list(CV.split(data["arrays"], data["labels"]))
    scores = cross_val_predict(quick_detector(), data["arrays"], cv=folds, method="decision_function")
    train, test = folds[1]
    expected = quick_detector().fit(data["arrays"][train]).decision_function(data["arrays"][test])
    np.testing.assert_array_equal(scores[test], expected)


def test_learning_and_validation_curves_are_defined_on_test_folds_only(data):
    scorer = AnomalyScorer("pixel_pro", undefined=math.nan)
    sizes, train, test = learning_curve(
        quick_detector(),
        data["arrays"],
        data["masks"],
        train_sizes=[0.5, 1.0],
        cv=CV,
        scoring=scorer,
        error_score="raise",
    )
    assert sizes.tolist() == [3, 6]
    assert np.isnan(train).all()
    assert np.isfinite(test).all()
    whole = cross_val_score(quick_detector(), data["arrays"], data["masks"], scoring=pixel_pro_scorer, cv=CV)
    np.testing.assert_array_equal(test[1], whole)
    train, test = validation_curve(
        quick_detector(),
        data["arrays"],
        data["masks"],
        param_name="alpha",
        param_range=[0.3, 2.0],
        cv=CV,
        scoring=scorer,
        error_score="raise",
    )
    assert np.isnan(train).all()
    assert np.isfinite(test).all()


def negative(images):
    return 255 - np.asarray(images)


def test_a_pipeline_is_searched_and_scored_through_its_steps(data):
    pipeline = Pipeline([("negative", FunctionTransformer(negative)), ("detector", quick_detector())])
    search = GridSearchCV(
        pipeline, {"detector__alpha": [0.3, 2.0]}, scoring=pixel_pro_scorer, cv=CV, error_score="raise"
    ).fit(255 - data["arrays"], data["masks"])
    plain = GridSearchCV(
        quick_detector(), {"alpha": [0.3, 2.0]}, scoring=pixel_pro_scorer, cv=CV, error_score="raise"
    ).fit(data["arrays"], data["masks"])
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"])
    assert search.best_estimator_[-1].n_samples_fit_ == N_NORMAL


def test_a_clone_scores_the_same_after_its_own_fit(data):
    detector = quick_detector().fit(data["arrays"], data["labels"])
    copy = clone(detector)
    assert not hasattr(copy, "offset_")
    copy.fit(data["arrays"], data["masks"])
    assert pixel_pro_scorer(copy, data["arrays"], data["masks"]) == pixel_pro_scorer(
        detector, data["arrays"], data["masks"]
    )


def test_synthetic_defects_allow_a_search_with_normal_images_alone(data):
    normal = data["arrays"][:N_NORMAL]
    X, y, groups = synthetic_validation(normal, n_anomalous=6, random_state=0, return_groups=True)
    search = GridSearchCV(
        quick_detector(),
        {"alpha": [0.3, 2.0]},
        scoring=AnomalyScorer(("image_auroc", "pixel_pro")),
        refit="pixel_pro",
        cv=GroupNormalKFold(3),
        error_score="raise",
    ).fit(X, y, groups=groups)
    assert search.best_estimator_.n_samples_fit_ == N_NORMAL
    assert np.isfinite(search.cv_results_["mean_test_pixel_pro"]).all()


# Metadata routing ------------------------------------------------------------------------------------------


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


@pytest.mark.usefixtures("routing")
def test_masks_and_groups_are_routed_in_addition_to_labels(data):
    parts = np.arange(len(data["labels"]))
    scorer = AnomalyScorer(("image_auroc", "pixel_pro")).set_score_request(masks=True)
    search = GridSearchCV(
        quick_detector(),
        {"alpha": [0.3, 2.0]},
        scoring=scorer,
        refit="pixel_pro",
        cv=GroupNormalKFold(3),
        error_score="raise",
    ).fit(data["paths"], data["labels"], masks=data["paths of masks"], groups=parts)
    found = search.cv_results_
    folds = list(GroupNormalKFold(3).split(data["paths"], data["labels"], parts))
    with sklearn.config_context(enable_metadata_routing=False):
        expected = GridSearchCV(
            quick_detector(),
            {"alpha": [0.3, 2.0]},
            scoring=AnomalyScorer(("image_auroc", "pixel_pro")),
            refit="pixel_pro",
            cv=folds,
        ).fit(data["paths"], data["masks"])
    for name in ("mean_test_image_auroc", "mean_test_pixel_pro"):
        np.testing.assert_array_equal(found[name], expected.cv_results_[name])


@pytest.mark.usefixtures("routing")
def test_masks_are_routed_under_another_name_and_to_scorers_in_a_dict(data):
    results = cross_validate(
        quick_detector(),
        data["arrays"],
        data["labels"],
        params={"truth": data["masks"]},
        scoring={
            "pro": pixel_pro_scorer.set_score_request(masks="truth"),
            "auroc": image_auroc_scorer.set_score_request(masks=False),
        },
        cv=CV,
        error_score="raise",
    )
    by_masks = cross_val_score(quick_detector(), data["arrays"], data["masks"], scoring=pixel_pro_scorer, cv=CV)
    np.testing.assert_array_equal(results["test_pro"], by_masks)


@pytest.mark.usefixtures("routing")
def test_with_routing_enabled_y_alone_still_works(data):
    scores = cross_val_score(quick_detector(), data["arrays"], data["masks"], scoring=pixel_pro_scorer, cv=CV)
    assert np.isfinite(scores).all()


@pytest.mark.usefixtures("routing")
def test_unrequested_masks_are_rejected_by_sklearn(data):
    search = GridSearchCV(quick_detector(), {"alpha": [0.3]}, scoring=AnomalyScorer("pixel_pro"), cv=CV)
    with pytest.raises(UnsetMetadataPassedError, match="masks"):
        search.fit(data["arrays"], data["labels"], masks=data["masks"])


# Errors ----------------------------------------------------------------------------------------------------


def test_an_error_of_a_scorer_is_raised_or_shown_as_a_warning(data):
    search = GridSearchCV(quick_detector(), {"alpha": [0.3]}, scoring=pixel_pro_scorer, cv=CV)
    with pytest.raises(InvalidTargetError, match="cannot compute pixel_pro from labels"):
        clone(search).set_params(error_score="raise").fit(data["arrays"], data["labels"])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        search.fit(data["arrays"], data["labels"])
    messages = [str(warning.message) for warning in shown]
    assert sum("cannot compute pixel_pro from labels" in message for message in messages) == 3
    assert any("non-finite" in message for message in messages)
    assert np.isnan(search.best_score_)


@pytest.mark.parametrize("y", ["labels", "masks"])
def test_a_test_fold_of_one_class_is_an_error_that_names_the_splitter(y, data):
    scorer = image_auroc_scorer if y == "labels" else pixel_pro_scorer
    with pytest.raises(InvalidTargetError, match=r"cannot be computed: all \d+ images are normal.*NormalKFold"):
        cross_val_score(quick_detector(), data["arrays"], data[y], scoring=scorer, cv=KFold(4), error_score="raise")


def test_zero_one_labels_never_reach_training(data):
    y = np.where(data["labels"] == -1, 1, 0)
    search = GridSearchCV(quick_detector(), {"alpha": [0.3]}, scoring=image_auroc_scorer, cv=CV, error_score="raise")
    with pytest.raises(InvalidTargetError, match=r"y contains 0, 1; .*np\.where\(y == 1, -1, 1\)"):
        search.fit(data["arrays"], y)


def test_stratified_folds_work_because_fit_excludes_anomalous_rows(data):
    results = cross_validate(
        quick_detector(),
        data["arrays"],
        data["labels"],
        scoring=image_auroc_scorer,
        cv=StratifiedKFold(3),
        return_train_score=True,  # defined here: the training folds have both classes
        return_estimator=True,
        error_score="raise",
    )
    assert np.isfinite(results["train_score"]).all()
    assert [detector.n_samples_fit_ for detector in results["estimator"]] == [6, 6, 6]


def test_without_scoring_a_search_fails_as_with_outlier_detectors_of_sklearn(data):
    messages = []
    for detector, grid in ((quick_detector(), {"alpha": [0.3]}), (IsolationForest(), {"n_estimators": [5]})):
        with pytest.raises(TypeError) as caught:
            GridSearchCV(detector, grid, cv=CV).fit(data["arrays"], data["labels"])
        messages.append(str(caught.value).replace(repr(detector), "DETECTOR"))
        assert not hasattr(detector, "score")
        with pytest.raises(AttributeError, match="has no attribute 'score'"):
            Pipeline([("detector", detector)]).score(data["arrays"])
    assert messages[0] == messages[1]
    assert "no scoring is specified" in messages[0]


# Cost ------------------------------------------------------------------------------------------------------


@pytest.fixture
def work(monkeypatch):
    """Count the images decoded and the images processed by a backbone."""
    counts = {"decoded": 0, "backbone": 0}
    view, maps = ImageSequence.view, FeatureExtractor.feature_maps

    def counted_view(self, index, item):
        counts["decoded"] += 1
        return view(self, index, item)

    def counted_maps(self, images):
        counts["backbone"] += len(images)
        return maps(self, images)

    monkeypatch.setattr(ImageSequence, "view", counted_view)
    monkeypatch.setattr(FeatureExtractor, "feature_maps", counted_maps)
    return counts


@pytest.mark.parametrize("X", ["arrays", "paths"])
def test_a_search_decodes_and_extracts_every_image_once(X, data, tmp_path, work):
    detector = quick_detector(memory=tmp_path)
    grid = {"alpha": [0.3, 2.0], "patch_size": [1, 3], "patch_score": ["fused"]}
    search = GridSearchCV(detector, grid, scoring=AnomalyScorer(), refit="pixel_pro", cv=CV, error_score="raise")
    search.fit(data[X], data["masks"])
    assert work["decoded"] == len(data["labels"])
    assert work["backbone"] == len(data["labels"])
    search.score(data[X], data["masks"])
    cross_validate(detector, data[X], data["masks"], scoring=SCORERS, cv=NormalShuffleSplit(2), error_score="raise")
    assert work["decoded"] == len(data["labels"])
    assert work["backbone"] == len(data["labels"])


def test_a_second_extractor_costs_one_more_pass(data, tmp_path, work):
    grid = {"image_size": [32, 48], "alpha": [0.3, 2.0]}
    search = GridSearchCV(
        quick_detector(memory=tmp_path), grid, scoring=pixel_pro_scorer, cv=CV, refit=False, error_score="raise"
    )
    search.fit(data["arrays"], data["masks"])
    assert work["decoded"] == 2 * len(data["labels"])


def test_the_search_benchmark_compares_true_and_generated_defects_and_runs_once(data, tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn.callback", reason="the benchmark's clock is a callback of scikit-learn 1.9")
    import search

    for kind, rows in (("train/good", range(6)), ("test/good", range(6, 9)), ("test/cut", range(9, 14))):
        (tmp_path / "part" / kind).mkdir(parents=True)
        for i in rows:
            shutil.copy(data["paths"][i], tmp_path / "part" / kind)
    (tmp_path / "part" / "ground_truth" / "cut").mkdir(parents=True)
    for path in filter(None, data["paths of masks"]):
        shutil.copy(path, tmp_path / "part" / "ground_truth" / "cut")
    options = f"--data {tmp_path} --category part --backbone embedded --image-size 32 --alpha 0.3 2 --patch-size 1"
    options += f" --set max_epochs=1 --output {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["search.py", *options.split()])
    search.main()
    assert "is up to date" not in capsys.readouterr().out
    target = tmp_path / "search-part-embedded.json"
    result = json.loads(target.read_text())["result"]
    assert (result["normal"], result["generated"], result["anomalous"]) == (9, 9, 5)
    detector = PBASDetector(
        "embedded", image_size=32, max_epochs=1, alpha=2.0, patch_size=1, random_state=0, memory=tmp_path / "memory"
    )
    y, groups = [1] * 9 + [-1] * 9 + [-1] * 5, [*range(9), *range(9), *range(9, 14)]
    scores = []
    for train, test in GroupNormalKFold(3).split(y, y, groups):
        rows = np.array([row if row < 9 else row - 9 for row in test if not 9 <= row < 18])  # without the copies
        detector.fit(data["arrays"][train])
        scores.append(pixel_pro_scorer(detector, data["arrays"][rows], data["masks"][rows]))
    assert result["candidates"][1]["alpha"] == 2.0
    assert result["candidates"][1]["true_pixel_pro"] == pytest.approx(np.mean(scores), abs=1e-3)
    assert result["seconds"]["search"] > result["seconds"]["training"] > 0
    search.main()
    assert "is up to date" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.part"))
