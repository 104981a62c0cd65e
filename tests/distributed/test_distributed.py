"""Scoring on a real cluster of two worker processes, with bad images, killed workers and interruptions."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import joblib
import numpy as np
import pyarrow.dataset
import pyarrow.parquet
import pytest
from distributed import Client, LocalCluster
from fsspec.implementations.memory import MemoryFileSystem
from helpers import small_detector, textured_images
from PIL import Image
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV

from skpbas.calibration import ConformalThreshold
from skpbas.distributed import _parquet as _parquet
from skpbas.distributed import score_images
from skpbas.distributed._worker import score_batch
from skpbas.errors import ClusterError, InvalidImageError, ResultsError, StorageError


class FileNumber(OutlierMixin, BaseEstimator):
    """Returns the number in a file name as its score; logs to ``log`` where it was loaded and what it scored."""

    offset_ = 9.5

    def __init__(self, log, seconds=0.0):
        self.log = log
        self.seconds = seconds

    def __setstate__(self, state):
        super().__setstate__(state)
        self._log("opened")

    def fit(self, X, y=None):
        self.fitted_ = True
        return self

    def score_samples(self, X):
        return np.array([self._score(Path(path).stem) for path in X])

    def _score(self, name):
        time.sleep(self.seconds)
        if name == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "bug":
            raise RuntimeError("the detector's own mistake")
        self._log(name)
        return float("nan") if name == "nothing" else float(name)

    def _log(self, word):
        with Path(self.log).open("a") as file:
            file.write(f"{os.getpid()} {word}\n")


def logged(detector):
    return [line.split() for line in Path(detector.log).read_text().splitlines()]


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0") as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        client.wait_for_workers(2, timeout=60)
        yield client


@pytest.fixture
def detector(tmp_path):
    return FileNumber(tmp_path / "log").fit(None)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{i}.png" for i in range(12)]
    for path, image in zip(paths, textured_images(12), strict=True):
        Image.fromarray(image).save(path)
    return paths


@pytest.fixture(scope="module")
def image_detector(good_images):
    return small_detector(max_epochs=2).set_params(backbone="embedded").fit(good_images)


def plugins_of_workers(client):
    names = client.run(lambda dask_worker: list(dask_worker.plugins))
    return [name for worker in names.values() for name in worker if name.startswith("skpbas")]


# Results --------------------------------------------------------------------------------------------------


def test_scores_match_those_without_a_cluster(client, image_detector, files):
    results = sorted(score_images(image_detector, iter(files), client=client, batch_size=5))
    assert [result.index for result in results] == list(range(12))
    assert [result.uri for result in results] == list(map(str, files))
    np.testing.assert_allclose([result.score for result in results], image_detector.score_samples(files), rtol=1e-5)
    assert all(result.margin == result.score - image_detector.offset_ for result in results)
    assert all(result.label == (-1 if result.margin < 0 else 1) for result in results)
    np.testing.assert_array_equal([result.p_value for result in results], image_detector.p_values(files))
    assert all(result.error is None for result in results)


def test_the_current_client_and_a_conformal_threshold_work(client, image_detector, files):
    model = ConformalThreshold(image_detector, max_false_alarm_rate=0.2, random_state=0).fit(textured_images(20))
    results = sorted(score_images(model, files[:4]))
    assert [result.label for result in results] == model.predict(files[:4]).tolist()
    assert [result.p_value for result in results] == model.p_values(files[:4]).tolist()


def test_p_values_that_need_the_scores_of_folds_are_those_of_the_detector(good_images, files):
    small = small_detector(max_epochs=1, patch_score="distance").set_params(backbone="embedded")
    model = ConformalThreshold(small, cv=3, max_false_alarm_rate=0.2, random_state=0).fit(good_images)
    scores, p_values, errors = score_batch(model, [*map(str, files[:4]), "gone.png"])
    np.testing.assert_array_equal(scores, [*model.score_samples(files[:4]), np.nan])
    np.testing.assert_array_equal(p_values, [*model.p_values(files[:4]), np.nan])
    assert list(errors) == [4]


def test_an_image_passes_through_the_network_once_for_its_score_and_p_value(image_detector, files, monkeypatch):
    score_samples, passed = type(image_detector).score_samples, []
    monkeypatch.setattr(
        type(image_detector), "score_samples", lambda self, X: passed.extend(X) or score_samples(self, X)
    )
    _, p_values, _ = score_batch(image_detector, list(map(str, files[:3])))
    assert passed == list(map(str, files[:3]))
    assert np.isfinite(p_values).all()


def test_no_images_give_no_results(client, detector, tmp_path):
    assert list(score_images(detector, [], client=client)) == []
    assert score_images(detector, [], client=client, output=tmp_path / "none").n_images == 0


@pytest.mark.parametrize("as_urls", [False, True])
def test_bad_images_are_reported_by_name_and_the_others_scored(client, image_detector, files, tmp_path, as_urls):
    small, text, cut = tmp_path / "small.png", tmp_path / "text.png", tmp_path / "cut.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(small)
    text.write_text("no image")
    cut.write_bytes(files[0].read_bytes()[:400])
    bad = {small: "smaller than", text: "not an image", cut: "damaged", tmp_path / "gone.png": "(?i)no such file"}
    mixed = [files[0], *bad, files[1]]
    uris = [path.as_uri() for path in mixed] if as_urls else mixed
    results = sorted(score_images(image_detector, uris, client=client, batch_size=3))
    assert [result.uri for result in results] == list(map(str, uris))
    assert results[0].error is None
    assert results[-1].error is None
    scores = [results[0].score, results[-1].score]
    np.testing.assert_allclose(scores, image_detector.score_samples([files[0], files[1]]), rtol=1e-5)
    for result, why in zip(results[1:-1], bad.values(), strict=True):
        assert result.label is None
        assert np.isnan([result.score, result.margin]).all()
        assert result.p_value is None
        assert re.search(why, result.error)
        assert result.uri in result.error
        assert "X[0]" not in result.error


def test_images_at_urls_are_opened_on_the_worker(image_detector, files):
    memory = MemoryFileSystem()
    memory.pipe({"/parts/0.png": files[0].read_bytes(), "/parts/1.png": b"no image"})
    uris = ["memory://parts/0.png", "memory://parts/1.png", "memory://parts/2.png"]
    scores, _, errors = score_batch(image_detector, uris)
    np.testing.assert_array_equal(scores, [image_detector.score_samples([files[0]])[0], np.nan, np.nan])
    assert errors[1].startswith("memory://parts/1.png is not an image that Pillow can read as PNG, ")
    assert errors[2].startswith("memory://parts/2.png: FileNotFoundError")


def test_a_protocol_that_needs_a_missing_package_ends_the_run(image_detector):
    with pytest.raises((ImportError, ValueError), match=r"gs3|gcsfs"):
        score_batch(image_detector, ["gs://bucket/0.png"])


def test_a_nan_score_and_a_rare_failure_are_reported(detector):
    scores, p_values, errors = score_batch(detector, ["3.png", "nothing.png", "bug.png", "5.png"])
    np.testing.assert_array_equal(scores, [3, np.nan, np.nan, 5])
    assert np.isnan(p_values).all()  # which this detector does not have
    assert errors == {
        1: "nothing.png: the detector's score is nan",
        2: "bug.png: RuntimeError: the detector's own mistake",
    }


def test_an_error_of_all_images_ends_the_run_and_cleans_up_the_workers(client, detector):
    with pytest.raises(RuntimeError, match="the detector's own mistake"):
        list(score_images(detector, ["bug.png"] * 8, client=client, batch_size=4))
    assert plugins_of_workers(client) == []


# Bounds ---------------------------------------------------------------------------------------------------


def test_names_are_read_lazily_as_batches_are_submitted(client, detector):
    read = 0

    def names():
        nonlocal read
        for read in range(1, 101):
            yield f"{read}.png"

    excess = [read - i for i, _ in enumerate(score_images(detector, names(), client=client, batch_size=5), start=1)]
    assert len(excess) == 100
    assert max(excess) <= 4 * 5  # two batches for each of two threads
    read = 0
    stream = score_images(detector, names(), client=client, batch_size=5, max_in_flight=1)
    assert max(read - i for i, _ in enumerate(stream, start=1)) <= 5


def test_a_stream_that_is_closed_early_cleans_up(client, tmp_path):
    slow = FileNumber(tmp_path / "log", seconds=0.05).fit(None)
    stream = score_images(slow, (f"{i}.png" for i in range(1000)), client=client, batch_size=4)
    assert next(stream).error is None
    stream.close()
    assert plugins_of_workers(client) == []
    assert len(logged(slow)) < 60


# Parquet --------------------------------------------------------------------------------------------------


def test_files_contain_every_image_in_order_with_its_error(client, detector, tmp_path):
    names = [f"{i}.png" for i in range(25)]
    names[7] = "bug.png"
    summary = score_images(
        detector, iter(names), client=client, batch_size=4, output=tmp_path / "out", images_per_file=10
    )
    table = pyarrow.dataset.dataset(tmp_path / "out").to_table()
    assert table.column_names == ["index", "uri", "score", "margin", "label", "p_value", "error"]
    rows = table.to_pylist()
    assert [row["index"] for row in rows] == list(range(25))
    assert [row["uri"] for row in rows] == names
    assert [row["label"] for row in rows] == [None if i == 7 else (-1 if i < 9.5 else 1) for i in range(25)]
    assert [row["margin"] for row in rows if row["label"]] == [i - 9.5 for i in range(25) if i != 7]
    assert {row["p_value"] for row in rows} == {None}  # which this detector does not have
    assert [row["score"] for row in rows if row["label"]] == [i for i in range(25) if i != 7]
    assert [row["error"] for row in rows if row["error"]] == ["bug.png: RuntimeError: the detector's own mistake"]
    assert (summary.n_images, summary.n_anomalous, summary.n_failed, summary.n_resumed) == (25, 9, 1, 0)
    assert sorted(path.name for path in summary.folder.iterdir()) == [
        f"part-{first:012d}.parquet" for first in (0, 10, 20)
    ]


def test_an_interrupted_run_resumes_with_the_missing_images(client, detector, tmp_path):
    out, names = tmp_path / "out", [f"{i}.png" for i in range(40)]

    def interrupted():
        yield from names[:25]
        while len(list(out.glob("part-*"))) < 2:
            time.sleep(0.01)
            yield names[25]
        raise KeyboardInterrupt

    settings = {"client": client, "batch_size": 4, "output": out, "images_per_file": 10}
    with pytest.raises(KeyboardInterrupt):
        score_images(detector, interrupted(), **settings)
    kept = sorted(path.name for path in out.iterdir())
    assert kept == ["part-000000000000.parquet", "part-000000000010.parquet"]
    assert plugins_of_workers(client) == []
    Path(detector.log).write_text("")
    summary = score_images(detector, names, **settings)
    assert sorted(int(word) for _, word in logged(detector) if word != "opened") == list(range(20, 40))
    assert (summary.n_images, summary.n_resumed, summary.n_files, summary.n_anomalous) == (40, 20, 4, 10)
    assert pyarrow.dataset.dataset(out).to_table()["score"].to_pylist() == list(range(40))
    Path(detector.log).write_text("")
    assert score_images(detector, names, **settings).n_resumed == 40
    assert {word for _, word in logged(detector)} <= {"opened"}


def test_existing_results_of_other_inputs_are_rejected(client, detector, tmp_path):
    names, settings = [f"{i}.png" for i in range(8)], {"client": client, "output": tmp_path, "images_per_file": 8}
    tmp_path = tmp_path / "out"
    settings["output"] = tmp_path
    score_images(detector, names, **settings)
    written = (tmp_path / "part-000000000000.parquet").read_bytes()
    with pytest.raises(ResultsError, match="other uris"):
        score_images(detector, names[::-1], **settings)
    with pytest.raises(ResultsError, match="another images_per_file: 8, now 4"):
        score_images(detector, names, **{**settings, "images_per_file": 4})
    other = FileNumber(detector.log).fit(None)
    other.offset_ = 3.0
    with pytest.raises(ResultsError, match=r"another detector: FileNumber, offset_=9.5.*, now FileNumber, offset_=3.0"):
        score_images(other, names, **settings)
    assert (tmp_path / "part-000000000000.parquet").read_bytes() == written
    (tmp_path / "part-000000000000.parquet").write_text("something")
    with pytest.raises(ResultsError, match="not a result of score_images"):
        score_images(detector, names, **settings)


def test_another_detector_with_the_same_threshold_is_known_apart(client, image_detector, good_images, files, tmp_path):
    settings = {"client": client, "output": tmp_path / "out", "images_per_file": 4}
    score_images(image_detector, files, **settings)
    assert score_images(pickle.loads(pickle.dumps(image_detector)), files, **settings).n_resumed == len(files)
    other = clone(image_detector).set_params(alpha=0.5).fit(good_images)
    other.offset_ = image_detector.offset_
    with pytest.raises(ResultsError, match=r"part-000000000000\.parquet has results of another detector"):
        score_images(other, files, **settings)


@pytest.mark.parametrize("as_list", [True, False])
def test_results_of_more_images_are_named_and_not_counted_in(as_list, client, detector, tmp_path):
    names, settings = [f"{i}.png" for i in range(12)], {"client": client, "images_per_file": 4}
    out = tmp_path / "out"
    score_images(detector, names, output=out, **settings)
    with pytest.raises(ResultsError, match=r"part-000000000008\.parquet .* more images than the 8 of this one: delete"):
        score_images(detector, names[:8] if as_list else iter(names[:8]), output=out, **settings)
    (out / "part-000000000008.parquet").unlink()
    assert score_images(detector, names[:8], output=out, **settings).n_resumed == 8


def test_a_damaged_file_is_named_and_scored_again_once_it_is_deleted(client, detector, tmp_path):
    names, settings = [f"{i}.png" for i in range(8)], {"client": client, "output": tmp_path / "out"}
    score_images(detector, names, **settings)
    path = tmp_path / "out" / "part-000000000000.parquet"
    whole, table = path.read_bytes(), pyarrow.dataset.dataset(path).to_table()
    other = table.set_column(2, "score", [[*range(7), 7.5]])
    pyarrow.parquet.write_table(other, tmp_path / "other")
    for content in ((tmp_path / "other").read_bytes(), whole[:-100], whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(ResultsError, match=r"part-000000000000\.parquet .* damaged .*delete it"):
            score_images(detector, names, **settings)
        assert path.read_bytes() == content
    path.unlink()
    assert score_images(detector, names, **settings).n_resumed == 0
    assert pyarrow.dataset.dataset(path).to_table() == table


def test_no_flipped_bit_in_a_file_changes_what_is_resumed(client, detector, tmp_path):
    uris = [f"{i}.png" for i in range(8)]
    score_images(detector, uris, client=client, output=tmp_path / "out")
    path = tmp_path / "out" / "part-000000000000.parquet"
    whole, table = path.read_bytes(), pyarrow.dataset.dataset(path).to_table()
    folder, rng = _parquet.ResultFolder(tmp_path / "out", detector, 10_000), np.random.default_rng(0)
    n_refused = 0
    for bit in rng.permutation(8 * len(whole))[:400].tolist():
        path.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        try:
            folder.found(0, uris)
        except ResultsError as error:
            n_refused += str(path) in str(error)
        else:
            assert pyarrow.parquet.read_table(path).equals(table)
    assert n_refused > 100


def test_files_of_another_origin_are_named_and_left_alone(client, detector, tmp_path):
    names, out = [f"{i}.png" for i in range(8)], tmp_path / "out"
    score_images(detector, names, client=client, output=out, images_per_file=4)
    part = (out / "part-000000000000.parquet").read_bytes()
    for name, text in (
        ("of_last_week.parquet", "is not a result"),
        ("part-000000000006.parquet", "another images_per_"),
    ):
        (out / name).write_bytes(part)
        with pytest.raises(ResultsError, match=rf"{name} .*{text}"):
            score_images(detector, names, client=client, output=out, images_per_file=4)
        assert (out / name).read_bytes() == part
        (out / name).unlink()
    for name in (".hidden.parquet", "notes.txt"):
        (out / name).write_bytes(b"")
    assert score_images(detector, names, client=client, output=out, images_per_file=4).n_resumed == 8


def test_a_full_disk_raises_an_error_and_leaves_no_partial_file(client, detector, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_parquet.os, "fsync", full)
    with pytest.raises(StorageError, match=r"part-000000000000.parquet cannot be written .*No space left"):
        score_images(detector, ["1.png"], client=client, output=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_name_that_is_not_unicode_is_scored_and_written_escaped(client, detector, tmp_path):
    score_images(detector, [os.fsdecode(b"\xff/3.png")], client=client, output=tmp_path / "out")
    (row,) = pyarrow.dataset.dataset(tmp_path / "out").to_table().to_pylist()
    assert (row["uri"], row["score"]) == ("\\udcff/3.png", 3)


# Errors ---------------------------------------------------------------------------------------------------


def test_invalid_arguments_are_rejected_immediately(client, detector, tmp_path):
    with pytest.raises(InvalidImageError, match="got a single one"):
        score_images(detector, "parts", client=client)
    with pytest.raises(InvalidImageError, match="got int"):
        score_images(detector, 3, client=client)
    with pytest.raises(NotFittedError):
        score_images(FileNumber(tmp_path), [], client=client)
    with pytest.raises(ValueError, match="'batch_size' parameter of score_images"):
        score_images(detector, [], client=client, batch_size=0)
    with pytest.raises(ValueError, match="'client' parameter of score_images"):
        score_images(detector, [], client="tcp://here:8786")
    with pytest.raises(ValueError, match="expected a folder on this machine"):
        score_images(detector, [], client=client, output="s3://bucket/results")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be created"):
        score_images(detector, [], client=client, output=tmp_path / "file")
    with pytest.raises(InvalidImageError, match=r"uris\[1\] is ndarray"):
        list(score_images(detector, ["1.png", np.zeros(3)], client=client))


def test_without_a_client_the_error_shows_how_to_create_one(detector):
    with pytest.raises(ValueError, match=r"client = distributed.Client\(n_workers=4"):
        score_images(detector, [])


def test_without_dask_the_error_names_the_extra():
    code = "import sys; sys.modules['distributed'] = None; import skpbas; skpbas.distributed"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "pip install skpbas[dask]" in run.stderr


# Searches -------------------------------------------------------------------------------------------------


def mean_score(estimator, X, y=None):
    return float(estimator.score_samples(X).mean())


def test_a_search_gives_the_same_scores_on_the_cluster_as_locally(client, good_images):
    detector = small_detector(max_epochs=1, contamination=0.1).set_params(backbone="embedded")
    search = GridSearchCV(detector, {"alpha": [0.5, 1.0]}, scoring=mean_score, cv=2, refit=False)
    local = search.fit(good_images).cv_results_["mean_test_score"]
    with joblib.parallel_config(backend="dask"):
        on_cluster = search.fit(good_images).cv_results_["mean_test_score"]
    np.testing.assert_allclose(on_cluster, local, rtol=1e-5)


# Workers that die -----------------------------------------------------------------------------------------


def test_a_killed_worker_loses_no_image_and_its_replacement_loads_the_detector_once(client, tmp_path):
    slow = FileNumber(tmp_path / "log", seconds=0.02).fit(None)
    before = set(client.run(os.getpid).values())
    results = []
    for result in score_images(slow, (f"{i}.png" for i in range(400)), client=client, batch_size=4):
        results.append(result)
        if len(results) == 20:
            os.kill(min(before), signal.SIGKILL)
    assert sorted(result.index for result in results) == list(range(400))
    assert all(result.score == result.index and result.error is None for result in results)
    opened = Counter(pid for pid, word in logged(slow) if word == "opened")
    client.wait_for_workers(2, timeout=60)
    after = set(client.run(os.getpid).values())
    assert len(before - after) == 1
    assert set(map(int, opened)) == before | after
    assert set(opened.values()) == {1}


def test_an_image_that_kills_workers_is_reported_and_its_neighbors_are_scored(cluster, client, detector):
    names = [f"{i}.png" for i in range(12)]
    names[4] = "poison.png"
    allowed, cluster.scheduler.allowed_failures = cluster.scheduler.allowed_failures, 0
    try:
        results = sorted(score_images(detector, names, client=client, batch_size=3))
    finally:
        cluster.scheduler.allowed_failures = allowed
    assert [result.index for result in results if result.error] == [4]
    assert "poison.png: all 1 workers that scored it alone died" in results[4].error
    assert [result.score for result in results if not result.error] == [i for i in range(12) if i != 4]


def test_workers_that_always_die_end_the_run_with_advice(cluster, client, detector, monkeypatch):
    monkeypatch.setattr("skpbas.distributed._cluster._LOSSES_IN_A_ROW", 2)
    allowed, cluster.scheduler.allowed_failures = cluster.scheduler.allowed_failures, 0
    try:
        with pytest.raises(ClusterError, match=r"died on 2 batches in a row.*more memory"):
            list(score_images(detector, ["poison.png"], client=client))
    finally:
        cluster.scheduler.allowed_failures = allowed


def test_a_cluster_that_is_lost_raises_an_error_instead_of_waiting_forever(tmp_path):
    slow = FileNumber(tmp_path / "log", seconds=0.01).fit(None)
    cluster = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0")
    with cluster, Client(cluster) as client:
        stream = score_images(slow, (f"{i}.png" for i in range(1000)), client=client, batch_size=2)
        next(stream)
        client.restart(wait_for_workers=False)
        with pytest.raises(ClusterError, match="lost a batch"):
            list(stream)
