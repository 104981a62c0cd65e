"""Several threads at a time: fits, predictions, and a fit of a detector that others predict with."""

import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import small_detector, textured_images
from sklearn.svm import OneClassSVM

from skpbas import PBASDetector
from skpbas.calibration import ConformalThreshold


def tiny(backbone="embedded", **params):
    recipe = {"image_size": 32, "hidden_dim": 16, "n_exemplars": 64, "max_epochs": 1, "batch_size": 4}
    return PBASDetector(backbone, **{**recipe, "device": "cpu", "random_state": 0, **params})


def test_fits_with_random_weights_at_a_time_give_what_each_gives_alone():
    images, new = textured_images(6, side=32), textured_images(3, side=32, seed=1)

    def scores(seed):
        return small_detector(image_size=32, max_epochs=1, random_state=seed).fit(images).score_samples(new)

    seeds = range(4)
    alone = [scores(seed) for seed in seeds]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            np.testing.assert_array_equal(list(pool.map(scores, seeds)), alone)


def test_a_detector_with_a_module_as_backbone_predicts_the_same_in_any_number_of_threads():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 4, 4), torch.nn.ReLU(), torch.nn.Conv2d(6, 8, 2, 2))
    detector = tiny(module, layers=["1", "2"]).fit(textured_images(6, side=32))
    images = textured_images(13, side=32, seed=1)
    alone = detector.score_samples(images)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: detector.score_samples(images[i % 13][None])[0], range(260)))
    np.testing.assert_array_equal(together, np.tile(alone, 20))


class Refitted:
    """Fits an estimator on two data sets in turn, while threads call one of its methods on new images."""

    def __init__(self, estimator, sets, method):
        self.alone = []
        for X in sets:
            self.alone.append(np.asarray(method(copy.deepcopy(estimator).fit(X))))
        estimator.fit(sets[0])
        self.seen, ended = [], threading.Event()

        def call():
            while not ended.is_set():
                self.seen.append(np.asarray(method(estimator)))

        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(call) for _ in range(3)]
            for turn in range(10):
                estimator.fit(sets[(turn + 1) % 2])
                n_seen = len(self.seen)
                while len(self.seen) <= n_seen + 3 and not any(one.done() for one in calls):
                    time.sleep(0.001)  # until a call that began after the fit has ended
            ended.set()
            for one in calls:
                one.result()

    def of_neither(self):
        return [seen for seen in self.seen if not any(np.array_equal(seen, alone) for alone in self.alone)]

    def of_each(self):
        return [sum(np.array_equal(seen, alone) for seen in self.seen) for alone in self.alone]


NEW = textured_images(4, side=40, seed=2)


@pytest.mark.parametrize(
    "method",
    [
        lambda detector: detector.decision_function(NEW),
        lambda detector: next(detector.iter_anomaly_maps(NEW, size="input")),
    ],
    ids=["decision_function", "iter_anomaly_maps"],
)
def test_a_detector_that_is_refitted_answers_as_one_fit_or_the_other(method):
    sets = textured_images(6, side=40), 255 - textured_images(6, side=40, seed=1) // 2
    refitted = Refitted(tiny(contamination=0.2), sets, method)
    assert refitted.of_neither() == []
    assert min(refitted.of_each()) > 0


@pytest.mark.parametrize("method", ["decision_function", "p_values"])
def test_a_conformal_threshold_that_is_refitted_answers_as_one_fit_or_the_other(method):
    rng = np.random.default_rng(0)
    sets, new = (rng.normal(0, 1, (60, 2)), rng.normal(3, 2, (60, 2))), rng.normal(0, 2, (5, 2))
    svm = OneClassSVM(gamma=0.5)  # without the threads of joblib, in which scikit-learn warns now and then
    threshold = ConformalThreshold(svm, max_false_alarm_rate=0.1, random_state=0)
    refitted = Refitted(threshold, sets, lambda fitted: getattr(fitted, method)(new))
    assert refitted.of_neither() == []
    assert min(refitted.of_each()) > 0


def test_resize_and_precision_are_those_of_the_fit():
    images, wide = textured_images(6, side=40), textured_images(3, side=60, seed=1)[:, :40]
    detector = tiny().fit(images)
    before = detector.score_samples(wide)
    detector.set_params(resize="crop", precision="bfloat16")
    np.testing.assert_array_equal(detector.score_samples(wide), before)


def test_an_offset_set_by_hand_decides():
    images = textured_images(6, side=40)
    detector = tiny().fit(images)
    scores = detector.score_samples(images)
    detector.offset_ = float(np.median(scores))
    np.testing.assert_array_equal(detector.decision_function(images), scores - np.median(scores))
    assert detector.fit(images).offset_ != np.median(scores)
