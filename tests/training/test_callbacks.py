"""scikit-learn callbacks: the tasks they see, stopping a fit, and no side effects on the detector."""

import copy
import inspect
import multiprocessing
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
from helpers import ROOT, small_detector, textured_images
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from skpbas._features.progress import progress_bar
from skpbas._training import loop
from skpbas._training.deferred import Deferred
from skpbas._training.loop import train_head
from skpbas.errors import TrainingError
from skpbas.scorers import AnomalyScorer, image_auroc_scorer

EPOCHS = 5
ScoringMonitor = pytest.importorskip("sklearn.callback", reason="callbacks need scikit-learn 1.9").ScoringMonitor


class NoOp:
    """A callback that does nothing; subclasses override hooks."""

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        pass


class Recording(NoOp):
    """Records every hook, and keeps the detector of every epoch."""

    def __init__(self):
        self.hooks, self.tasks, self.detectors, self.data = [], [], [], []

    def setup(self, estimator, context):
        self.hooks.append("setup")

    def teardown(self, estimator, context):
        self.hooks.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.hooks.append(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, fitted_estimator=None):
        self.hooks.append(f"end {context.task_name}")
        self.tasks.append(context)
        self.data.append((X, y))
        if context.task_name == "epoch":
            self.detectors.append(fitted_estimator)


class StopAfter(NoOp):
    """Requests to stop after some epochs, or when another task ends."""

    def __init__(self, n_epochs=None, task_name="epoch"):
        self.n_epochs, self.task_name, self.seen = n_epochs, task_name, 0

    def on_fit_task_end(self, estimator, context):
        if context.task_name != self.task_name:
            return False
        self.seen += 1
        return self.n_epochs is None or self.seen >= self.n_epochs


class Failing(NoOp):
    """Raises in one hook, and counts its teardowns."""

    def __init__(self, hook):
        self.hook, self.torn_down = hook, 0

    def setup(self, estimator, context):
        self._fail("setup")

    def teardown(self, estimator, context):
        self.torn_down += 1

    def on_fit_task_begin(self, estimator, context):
        self._fail(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context):
        self._fail(f"end {context.task_name}")

    def _fail(self, hook):
        if hook == self.hook:
            raise RuntimeError(f"failed at {hook}")


class Propagated(Recording):
    """A recording callback that a search propagates to the detectors it fits."""

    max_propagation_depth = None

    def on_fit_task_end(self, estimator, context):
        self.tasks.append(context)


def detector_with(*callbacks, **params):
    return small_detector(**{"max_epochs": EPOCHS, **params}).set_callbacks(*callbacks)


def labeled_images():
    """Normal and corrupted images, with labels."""
    images = textured_images(18, side=64, seed=5)
    images[12:, 20:40, 20:40] = np.random.default_rng(1).integers(0, 256, (6, 20, 20, 3))
    return images, np.repeat([1, -1], [12, 6])


def assert_same_detector(one, other, images):
    np.testing.assert_array_equal(one.score_samples(images), other.score_samples(images))
    np.testing.assert_array_equal(one.anomaly_map(images[:2]), other.anomaly_map(images[:2]))
    assert one.offset_ == other.offset_
    assert one.loss_curve_ == other.loss_curve_
    assert one.n_iter_ == other.n_iter_


def test_a_callback_sees_the_tasks_of_a_fit_in_order(good_images):
    recording = Recording()
    detector_with(recording).fit(good_images)
    epochs = ["begin epoch", "end epoch"] * EPOCHS
    parts = ["begin features", "end features", *epochs, "begin threshold", "end threshold"]
    assert recording.hooks == ["setup", "begin fit", *parts, "end fit", "teardown"]
    assert [task.task_id for task in recording.tasks if task.task_name == "epoch"] == [1, 2, 3, 4, 5]
    root = recording.tasks[-1]
    assert root.max_subtasks == len(recording.tasks) - 1  # progress reaches 100%


@pytest.mark.parametrize("synthesis", ["ray", None])
def test_a_callback_sees_the_number_and_loss_terms_of_every_epoch(good_images, synthesis):
    recording = Recording()
    detector = detector_with(recording, synthesis=synthesis).fit(good_images)
    assert [seen.n_iter_ for seen in recording.detectors] == [1, 2, 3, 4, 5]
    for epoch, seen in enumerate(recording.detectors):
        assert seen.loss_curve_ == {name: means[: epoch + 1] for name, means in detector.loss_curve_.items()}


def test_a_callback_receives_the_images_and_labels_of_fit():
    images, y = labeled_images()
    recording = Recording()
    detector_with(recording, max_epochs=1).fit(images, y)
    assert all(X is images for X, _ in recording.data)
    assert all(labels is y for _, labels in recording.data)


def test_the_detector_of_an_epoch_equals_one_whose_fit_stopped_there(good_images):
    recording = Recording()
    detector_with(recording).fit(good_images)
    for n_epochs in (1, 3, EPOCHS):
        stopped = detector_with(StopAfter(n_epochs)).fit(good_images)
        assert_same_detector(recording.detectors[n_epochs - 1], stopped, good_images)


@pytest.mark.parametrize("copy_by", [pickle.dumps, copy.deepcopy, copy.copy])
def test_the_detector_of_an_epoch_can_be_copied_before_use(good_images, copy_by):
    recording = Recording()
    detector_with(recording).fit(good_images)
    seen = recording.detectors[1]
    kept = copy_by(seen.set_callbacks())
    if copy_by is pickle.dumps:
        kept = pickle.loads(kept)
    assert_same_detector(kept, detector_with(StopAfter(2)).fit(good_images), good_images)
    assert "_callback_fit_ctx" not in vars(kept)  # no reference to the running fit
    if copy_by is not copy.copy:
        assert not [value for value in vars(kept).values() if isinstance(value, Deferred)]  # or its features


def test_a_callback_that_ends_the_training_ends_it_at_every_scale(good_images, monkeypatch):
    trained = []

    def spied(*args, **kwargs):
        trained.append(train_head(*args, **kwargs))
        return trained[-1]

    for module in ("skpbas.estimator", "skpbas._training.completion"):
        monkeypatch.setattr(f"{module}.train_head", spied)
    assert detector_with(StopAfter(2), scales=(1, 0.5)).fit(good_images).n_iter_ == 2
    assert [head.n_epochs for head in trained] == [2, 2]


def test_deferred_attributes_release_the_training_features_once_computed(good_images):
    recording = Recording()
    detector_with(recording, max_epochs=2).fit(good_images)
    seen = recording.detectors[0]
    assert isinstance(vars(seen)["model_"], Deferred)
    assert isinstance(vars(seen)["offset_"], Deferred)
    seen.find_regions(good_images[:1])
    seen.p_values(good_images[:1])
    assert not [value for value in vars(seen).values() if isinstance(value, Deferred)]
    with pytest.raises(AttributeError, match="no attribute 'ofset_'"):
        _ = seen.ofset_


def test_the_detector_of_an_epoch_does_not_depend_on_an_earlier_fit(good_images):
    recording = Recording()
    detector = detector_with(recording).fit(textured_images(8, seed=9))
    detector.fit(good_images)
    seen = recording.detectors[EPOCHS + 2]
    assert_same_detector(seen, detector_with(StopAfter(3)).fit(good_images), good_images)


def test_no_detector_is_made_unless_a_callback_requests_it(good_images, monkeypatch):
    made = []
    original = loop._copy_of_head
    monkeypatch.setattr(loop, "_copy_of_head", lambda *args: (made.append(1), original(*args))[1])
    detector_with(StopAfter(EPOCHS)).fit(good_images[:3])
    assert len(made) == 1  # at the end of the fit


@pytest.mark.parametrize(
    "params",
    [{}, {"patch_score": "discriminator", "synthesis": "gaussian"}, {"synthesis": None}, {"contamination": 0.2}],
    ids=["fused", "gaussian", "distance", "contamination"],
)
def test_callbacks_do_not_change_the_detector(good_images, params):
    class Predicting(NoOp):
        def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
            if fitted_estimator is not None:
                fitted_estimator.predict(good_images[:2])

    watched = detector_with(Predicting(), Recording(), **params).fit(good_images)
    assert_same_detector(watched, detector_with(**params).fit(good_images), good_images)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_returning_true_stops_training_without_changing_the_schedule(good_images, schedule):
    whole = detector_with(schedule=schedule).fit(good_images)
    stopped = detector_with(StopAfter(3), schedule=schedule).fit(good_images)
    assert stopped.n_iter_ == 3
    assert stopped.loss_curve_ == {name: means[:3] for name, means in whole.loss_curve_.items()}
    assert np.isfinite(stopped.decision_function(good_images)).all()


@pytest.mark.parametrize("task_name", ["fit", "features", "threshold"])
def test_returning_true_after_another_task_is_ignored(good_images, task_name):
    callback = StopAfter(task_name=task_name)
    assert detector_with(callback).fit(good_images).n_iter_ == EPOCHS
    assert callback.seen == 1


def test_the_second_head_of_the_threshold_stops_as_early_and_is_hidden_from_callbacks(good_images, monkeypatch):
    epochs = []
    original = loop._Net.fit_loop
    monkeypatch.setattr(loop._Net, "fit_loop", lambda net, *a, **k: (epochs.append(net), original(net, *a, **k))[1])
    callback = StopAfter(3)
    detector_with(callback, patch_score="discriminator").fit(good_images)  # this score needs a second head
    assert [epochs.count(net) for net in dict.fromkeys(epochs)] == [3, 3]
    assert callback.seen == 3


@pytest.mark.parametrize("hook", ["setup", "begin fit", "end features", "begin epoch", "end epoch", "end fit"])
def test_errors_of_a_callback_propagate_and_every_callback_is_torn_down(good_images, hook):
    first, failing = Recording(), Failing(hook)
    detector = detector_with(first, failing)
    with pytest.raises(RuntimeError, match=f"failed at {hook}"):
        detector.fit(good_images)
    assert first.hooks[-1] == "teardown"
    assert failing.torn_down == 1
    assert hasattr(detector, "offset_") == (hook == "end fit")  # fitted by then
    assert not [name for name in vars(detector) if name.startswith(("_skl_callbacks_to", "_callback"))]


def test_a_callback_that_raises_does_not_change_an_earlier_fit(fitted, good_images):
    detector = copy.copy(fitted)
    with pytest.raises(RuntimeError, match="failed at end epoch"):
        detector.set_callbacks(Failing("end epoch")).fit(good_images[:5])
    assert_same_detector(detector, fitted, good_images)


def test_a_failing_fit_tears_callbacks_down(good_images):
    recording = Recording()
    detector = detector_with(recording, projector_lr=1e30, synthesis=None, schedule="constant")
    with pytest.raises(TrainingError):
        detector.fit(good_images)
    assert recording.hooks[-1] == "teardown"


def test_clones_share_callbacks_even_if_they_cannot_be_copied():
    callback = NoOp()
    callback.lock = threading.Lock()  # cannot be copied
    assert clone(detector_with(callback))._skl_callbacks == [callback]
    assert clone(make_pipeline(detector_with(callback)))[-1]._skl_callbacks == [callback]


def test_a_clone_of_a_fitted_detector_is_not_fitted(fitted):
    assert not [name for name in vars(clone(fitted)) if name.endswith("_")]


def test_a_detector_with_callbacks_can_be_saved(good_images, tmp_path):
    detector = detector_with(StopAfter(2)).fit(good_images)
    joblib.dump(detector, tmp_path / "d.joblib")
    loaded = joblib.load(tmp_path / "d.joblib")
    assert_same_detector(loaded, detector, good_images)
    assert loaded._skl_callbacks[0].seen == 2


def one_split(n):
    return [(np.arange(n // 2), np.arange(n // 2, n))]


def mean_margin(detector, X, y=None):
    return detector.decision_function(X).mean()


def search(detector, alphas=(0.5, 1.0), **params):
    return GridSearchCV(
        detector, {"alpha": list(alphas)}, scoring=mean_margin, cv=one_split(8), error_score="raise", **params
    )


def test_the_original_callback_sees_all_fits_of_a_search(good_images):
    recording = Recording()
    search(detector_with(recording, max_epochs=2, contamination=0.2)).fit(good_images[:8])
    assert recording.hooks.count("setup") == recording.hooks.count("teardown") == 3  # two candidates and the refit
    assert recording.hooks.count("end epoch") == 6


def test_the_tasks_of_a_fit_are_children_of_those_of_the_search(good_images):
    callback = Propagated()
    search(detector_with(max_epochs=2, contamination=0.2)).set_callbacks(callback).fit(good_images[:8])
    assert callback.hooks.count("setup") == callback.hooks.count("teardown") == 1
    epoch = next(task for task in callback.tasks if task.task_name == "epoch")
    assert (epoch.estimator_name, epoch.parent.source_task_name) == ("PBASDetector", "candidate-split-evaluation")
    assert (epoch.parent.parent.task_name, epoch.parent.parent.parent.estimator_name) == ("search", "GridSearchCV")
    assert sum(task.task_name == "epoch" for task in callback.tasks) == 6


def bars_drawn(output):
    """The labels of scikit-learn's progress bars, and the progress of each in percent."""
    lines = [line for line in re.split(r"[\r\n]+", output) if "━" in line]
    return [(line.split("━")[0].strip(), re.search(r"(\d+)%", line).group(1)) for line in lines]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_progress_bars_of_a_search_are_not_garbled_by_a_verbose_detector(good_images, capfd, n_jobs):
    pytest.importorskip("rich", reason="scikit-learn's ProgressBar is drawn with rich")
    from sklearn.callback import ProgressBar

    detector = small_detector(max_epochs=2, contamination=0.2, verbose=1)
    search(detector, n_jobs=n_jobs).set_callbacks(ProgressBar()).fit(good_images[:8])
    captured = capfd.readouterr()
    bars = bars_drawn(captured.out)
    fit_bars = [name for name, _ in bars if name.count("PBASDetector - fit") == 1]
    assert len(fit_bars) == 3
    assert [name.split(" | ")[0] for name in fit_bars] == [
        "GridSearchCV - candidate-split-evaluation",
        "GridSearchCV - candidate-split-evaluation",
        "GridSearchCV - refit-with-best-params",
    ]
    assert {percent for _, percent in bars} == {"100"}
    assert len(bars) == 5
    assert captured.err == ""


def test_the_score_of_every_epoch_can_be_monitored():
    images, y = labeled_images()
    monitor = ScoringMonitor(scoring="roc_auc")
    detector = detector_with(monitor, contamination=0.1).fit(images, y)
    log = monitor.get_logs().data
    assert [row["task_id"] for row in log if row["task_name"] == "epoch"] == [1, 2, 3, 4, 5]
    last, fit_row = log[-1], log[0]
    assert fit_row["task_name"] == "fit"
    assert last["roc_auc"] == fit_row["roc_auc"] == roc_auc_score(y, detector.decision_function(images))
    early = detector_with(StopAfter(1), contamination=0.1).fit(images, y)
    assert log[1]["roc_auc"] == roc_auc_score(y, early.decision_function(images))


@pytest.mark.parametrize("multiple", [False, True])
def test_a_monitor_accepts_the_scorers_of_the_package(multiple):
    images, y = labeled_images()
    scorer = AnomalyScorer(("image_auroc", "image_ap")) if multiple else image_auroc_scorer
    monitor = ScoringMonitor(scoring=scorer if multiple else {"image_auroc": scorer})
    detector = detector_with(monitor, max_epochs=2, contamination=0.1).fit(images, y)
    logged = monitor.get_logs().data[-1]
    assert logged["image_auroc"] == image_auroc_scorer(detector, images, y)
    assert ("image_ap" in logged) == multiple


def test_a_monitor_receives_scores_of_fits_in_other_processes():
    images, y = labeled_images()
    monitor = ScoringMonitor(scoring="roc_auc")
    detector = detector_with(monitor, max_epochs=2, contamination=0.1)
    grid = GridSearchCV(
        detector, {"alpha": [0.5, 1.0]}, scoring="roc_auc", cv=[(np.arange(18), np.arange(18))], n_jobs=2
    )
    grid.fit(images, y)
    log = monitor.get_logs().data
    assert [row["task_name"] for row in log].count("epoch") == 6
    scores = [row["roc_auc"] for row in log if row["task_name"] == "fit"]
    np.testing.assert_array_equal(sorted(scores[:2]), sorted(grid.cv_results_["mean_test_score"]))


def test_bars_of_fits_in_threads_do_not_garble_each_other(good_images, capfd):
    def fit(seed):
        return small_detector(max_epochs=4, verbose=1, random_state=seed).fit(good_images)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(fit, range(6)))
    written = capfd.readouterr().err
    assert "\n" not in written
    assert "\x1b[A" not in written  # no bars below each other
    bars = [part for part in written.split("\r") if part.strip()]
    assert bars
    assert all(re.fullmatch(r"(features|training|threshold): .*\]\s*", bar) for bar in bars)


def test_only_one_bar_is_shown_at_a_time(capfd):
    with progress_bar(2, "first", "step", True) as first, progress_bar(2, "second", "step", True) as second:
        assert (first.disable, second.disable) == (False, True)
    with progress_bar(2, "third", "step", True) as third:
        third.close()
        third.close()
        assert progress_bar(2, "silent", "step", False).disable
    with progress_bar(2, "fourth", "step", True) as fourth:
        assert not fourth.disable
    assert "second" not in capfd.readouterr().err


def test_workers_show_no_bars(monkeypatch):
    monkeypatch.setattr(multiprocessing, "parent_process", multiprocessing.current_process)
    assert progress_bar(2, "features", "image", True).disable


def test_the_callback_of_the_guide_stops_training_on_a_plateau(good_images):
    guide = (ROOT / "docs" / "callbacks.rst").read_text(encoding="utf-8")
    block = re.search(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", guide).group(1)
    names = {}
    exec(inspect.cleandoc(block), names)  # the first block of the page
    detector = detector_with(names["StopOnPlateau"](patience=3), max_epochs=12, projector_lr=1e-12, synthesis=None)
    assert detector.fit(good_images).n_iter_ == 4
    assert detector.set_params(projector_lr=1e-2).fit(good_images).n_iter_ == 12
