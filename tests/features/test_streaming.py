"""Images one by one: any iterable, in order, as they come, with bad ones in between."""

import copy
import itertools
import os
import pickle
import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from helpers import small_detector
from PIL import Image

import skpbas
from skpbas import Result
from skpbas._features.extraction import prefetch
from skpbas.calibration import ConformalThreshold
from skpbas.errors import ImageNotFoundError, InvalidImageError


class Camera:
    """An endless source of frames that counts how many were asked for."""

    def __init__(self, images):
        self.images = images
        self.n_taken = 0

    def __iter__(self):
        for image in itertools.cycle(self.images):
            self.n_taken += 1
            yield image


class Lazy:
    """Images that are loaded when they are asked for; counts how often."""

    def __init__(self, images):
        self.images = images
        self.loaded = []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        self.loaded.append(int(index))
        return image


class LazySequence(Lazy, Sequence):
    pass


@pytest.fixture
def paths(good_images, tmp_path):
    written = [tmp_path / f"{i}.png" for i in range(6)]
    for path, image in zip(written, good_images, strict=False):
        Image.fromarray(image).save(path)
    return written


def truncated(path):
    path.write_bytes(path.read_bytes()[:200])
    return path


@pytest.mark.parametrize("method", ["iter_scores_and_maps", "iter_anomaly_maps", "score_stream"])
def test_the_first_result_of_an_endless_stream_needs_one_frame(method, fitted, good_images):
    camera = Camera(good_images)
    results = getattr(fitted, method)(camera)
    assert camera.n_taken == 0
    for n in (1, 2, 3):
        next(results)
        assert camera.n_taken == n


def test_more_threads_take_a_few_frames_in_advance(fitted, good_images):
    camera = Camera(good_images)
    detector = pickle.loads(pickle.dumps(fitted)).set_params(n_jobs=2)
    expected = fitted.score_samples(good_images)
    scores = [score for score, _ in itertools.islice(detector.iter_scores_and_maps(camera), 12)]
    assert camera.n_taken <= 12 + 2 * 2 + 1
    np.testing.assert_array_equal(scores, expected)


def test_a_source_may_use_the_memory_of_a_frame_again(fitted, good_images):
    def camera():
        frame = np.empty_like(good_images[0])
        for image in good_images:
            frame[:] = image
            yield frame

    class Loader(Sequence):
        frame = np.empty_like(good_images[0])

        def __len__(self):
            return len(good_images)

        def __getitem__(self, index):
            self.frame[:] = good_images[index]
            return self.frame

    expected = fitted.score_samples(good_images)
    for n_jobs in (1, 3):
        detector = copy.deepcopy(fitted).set_params(n_jobs=n_jobs)
        assert [result.score for result in detector.score_stream(camera())] == expected.tolist()
    np.testing.assert_array_equal(fitted.score_samples(Loader()), expected)


def test_a_source_that_waits_withholds_no_result(fitted, good_images):
    camera = Camera(good_images)
    results = copy.deepcopy(fitted).set_params(n_jobs=3).score_stream(iter(camera))
    for n in (1, 2):
        next(results)
        assert camera.n_taken == n


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_refused_unopened_with_memory_too(fitted, good_images, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    detector = copy.deepcopy(fitted).set_params(memory=tmp_path / "memory")
    frames = [good_images[0], tmp_path / "pipe.png", good_images[1]]
    assert [result.error is None for result in detector.score_stream(iter(frames), on_error="skip")] == [
        True,
        False,
        True,
    ]


def test_one_image_may_occur_several_times(fitted, paths):
    with Image.open(paths[0]) as image:
        detector = copy.deepcopy(fitted).set_params(n_jobs=4)
        assert len(set(detector.score_samples([image] * 12).tolist())) == 1


def test_a_generator_gives_what_a_list_gives(fitted, good_images):
    few = good_images[:4]
    for X in ((image for image in few), iter(list(few)), map(Image.fromarray, few)):
        assert [score for score, _ in fitted.iter_scores_and_maps(X)] == fitted.score_samples(few).tolist()
    np.testing.assert_array_equal(fitted.predict(image for image in few), fitted.predict(few))
    np.testing.assert_array_equal(fitted.score_samples(image for image in few), fitted.score_samples(few))
    np.testing.assert_array_equal(fitted.anomaly_map(image for image in few), fitted.anomaly_map(few))
    of_a_generator = small_detector(max_epochs=1).fit(image for image in few)
    np.testing.assert_array_equal(
        of_a_generator.score_samples(few), small_detector(max_epochs=1).fit(few).score_samples(few)
    )


def test_a_stream_agrees_with_scores_labels_and_anomaly_maps(fitted, good_images, paths):
    defective = good_images[0].copy()
    defective[20:40, 20:40] = 255
    X = [*paths[:2], defective, Image.fromarray(good_images[3])]
    results = list(fitted.score_stream(iter(X)))
    assert [result.index for result in results] == [0, 1, 2, 3]
    assert [result.name for result in results] == [str(paths[0]), str(paths[1]), "images[2]", "images[3]"]
    assert [result.score for result in results] == fitted.score_samples(X).tolist()
    assert [result.label for result in results] == fitted.predict(X).tolist()
    np.testing.assert_array_equal([result.map for result in results], fitted.anomaly_map(X))
    assert [result.p_value for result in results] == fitted.p_values(X).tolist()
    assert [result.verdict for result in results] == fitted.verdicts(X).tolist()
    assert {result.error for result in results} == {None}
    assert all(result.map is None for result in fitted.score_stream(X, maps=False))


def test_labels_follow_a_threshold_that_the_user_sets(good_images, fitted):
    detector = pickle.loads(pickle.dumps(fitted))
    detector.offset_ = float(np.median(fitted.score_samples(good_images)))
    labels = [result.label for result in detector.score_stream(good_images, maps=False)]
    assert labels == detector.predict(good_images).tolist()
    assert set(labels) == {-1, 1}


def test_a_stream_goes_on_after_bad_images_and_reports_them(fitted, paths, good_images):
    nan = np.full((64, 64), np.nan)
    X = [paths[0], truncated(paths[1]), "no/such.png", nan, (good_images[0], 1), None, paths[2]]
    results = list(fitted.score_stream(iter(X), on_error="skip"))
    assert [result.index for result in results] == list(range(7))
    assert [result.error is None for result in results] == [True, False, False, False, False, False, True]
    for result in results[1:6]:
        assert (result.score, result.label, result.p_value, result.map) == (None, None, None, None)
        assert result.error.startswith(f"images[{result.index}]")
    assert "damaged or truncated" in results[1].error
    assert results[1].name == str(paths[1])
    assert "no such file" in results[2].error
    assert results[6].score == fitted.score_samples([paths[2]])[0]
    assert len(list(fitted.score_stream(X, on_error="skip"))) == 7  # a list too


def test_a_stream_raises_where_a_bad_image_is(fitted, paths):
    results = fitted.score_stream(iter([paths[0], truncated(paths[1]), paths[2]]))
    next(results)
    with pytest.raises(InvalidImageError, match=r"images\[1\] \(.*1.png\) is damaged"):
        next(results)
    with pytest.raises(ValueError, match="on_error='ignore': choose 'raise' or 'skip'"):
        fitted.score_stream(paths, on_error="ignore")


def test_an_array_of_which_one_image_is_bad_is_streamed(fitted, good_images):
    X = good_images[:3] / 255
    X[1, 0, 0] = np.nan
    assert [result.error is None for result in fitted.score_stream(X, on_error="skip")] == [True, False, True]


def test_a_score_that_is_not_finite_is_an_error_and_not_a_label(fitted, good_images):
    damaged_backbone, damaged_head = (pickle.loads(pickle.dumps(fitted)) for _ in range(2))
    with torch.no_grad():
        next(damaged_backbone.model_.extractor.parameters()).fill_(float("nan"))
        damaged_head.model_.patch_scorer.discriminator.output.fill_(float("nan"))
    for detector, message in (
        (damaged_backbone, r"\[0\]: the backbone's feature maps contain NaN or infinity: .* weights of the backbone"),
        (damaged_head, r"\[0\]: its score is nan, although its feature maps are finite: .* fit again"),
    ):
        result = next(detector.score_stream(good_images, on_error="skip"))
        assert (result.score, result.label) == (None, None)
        assert re.search("images" + message, result.error)
        with pytest.raises(InvalidImageError, match=message):
            next(detector.score_stream(good_images))
        for method in (detector.predict, detector.decision_function, detector.anomaly_map):
            with pytest.raises(InvalidImageError, match="X" + message):
                method(good_images[:2])


def test_errors_of_the_iterable_are_raised(fitted, good_images):
    def frames():
        yield good_images[0]
        raise ConnectionError("the camera is gone")

    results = fitted.score_stream(frames(), on_error="skip")
    next(results)
    with pytest.raises(ConnectionError, match="the camera is gone"):
        next(results)


def test_one_error_names_all_images_that_cannot_be_read(fitted, paths):
    truncated(paths[1]), paths[4].write_bytes(b"text")
    for method in (fitted.predict, fitted.score_samples, fitted.decision_function, small_detector().fit):
        with pytest.raises(
            InvalidImageError, match=r"^2 of 6 images are unusable:\n  X\[1\].*\n  X\[4\].*not an image"
        ):
            method(paths)
    with pytest.raises(ImageNotFoundError, match=r"^2 of 8 images are unusable:\n.*X\[6\].*\n.*X\[7\]"):
        fitted.predict([*paths, "gone.png", "lost.png"])
    with pytest.raises(InvalidImageError, match=r"^X\[1\]"):  # one by one, the first ends it
        list(fitted.iter_scores_and_maps(paths))


@pytest.mark.parametrize("kind", [Lazy, LazySequence])
@pytest.mark.parametrize("memory", [False, True])
def test_every_image_of_a_lazy_sequence_is_loaded_once_a_call(kind, memory, good_images, tmp_path):
    lazy = kind(good_images)
    detector = small_detector(max_epochs=1, memory=tmp_path if memory else None).fit(lazy)
    assert sorted(lazy.loaded) == list(range(12))
    for method in (detector.predict, detector.anomaly_map, lambda X: list(detector.score_stream(X))):
        lazy.loaded.clear()
        method(lazy)
        assert sorted(lazy.loaded) == list(range(12))


def test_images_that_y_leaves_out_are_not_loaded(good_images):
    lazy = Lazy(good_images)
    small_detector(max_epochs=1).fit(lazy, np.array([1, -1] * 6))
    assert sorted(lazy.loaded) == list(range(0, 12, 2))


def test_what_was_left_out_of_a_stream_is_warned_of_when_it_comes(fitted, good_images):
    clear = np.dstack([good_images[0], np.full((64, 64), 99, np.uint8)])
    stream = fitted.score_stream(itertools.cycle([good_images[0], clear]))
    next(stream)
    with pytest.warns(UserWarning, match=r"blended with white in some images, first in images\[1\]"):
        next(stream)
    for _ in range(4):
        next(stream)  # once is enough


def test_streams_judge_by_the_calibrated_threshold(good_images, paths):
    threshold = ConformalThreshold(small_detector(max_epochs=1), max_false_alarm_rate=0.3, random_state=0)
    threshold.fit(good_images)
    X = [*paths[:3], np.zeros((64, 64), np.uint8)]
    results = list(threshold.score_stream(iter([*X, None]), on_error="skip", maps=False))
    assert [result.label for result in results[:-1]] == threshold.predict(X).tolist()
    assert [result.p_value for result in results[:-1]] == threshold.p_values(X).tolist()
    assert (results[-1].label, results[-1].p_value) == (None, None)


def test_results_are_part_of_the_package_and_may_be_pickled():
    assert skpbas.Result is Result
    result = Result(0, "a.png", -1.5, 1)
    assert pickle.loads(pickle.dumps(result)) == result


def test_nothing_is_loaded_in_advance_unless_asked_for():
    taken = []
    results = prefetch(lambda i: i, (taken.append(i) or i for i in range(9)), 3, eager=False)
    assert next(results) == 0
    assert taken == [0]
