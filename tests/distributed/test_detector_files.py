"""Scoring on a cluster with the file of a detector: opened once by each worker, and without torch if it is ONNX."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest
import torch
from distributed import Client, LocalCluster
from helpers import small_detector, textured_images
from PIL import Image
from torch import nn

import skpbas
from skpbas.distributed import score_images
from skpbas.distributed._worker import FilePlugin, _n_threads, open_detector, score_on_worker
from skpbas.errors import ClusterError, FileFormatError, ResultsError
from skpbas.export import to_onnx
from skpbas.runtime import OnnxDetector

pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


@pytest.fixture(scope="module")
def client():
    """Two workers of two threads each, in this process: those of test_distributed.py are processes."""
    settings = {"n_workers": 2, "threads_per_worker": 2, "processes": False, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**settings) as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=60)
        yield client


@pytest.fixture(scope="module")
def image_detector(good_images):
    return small_detector(max_epochs=2).set_params(backbone="embedded").fit(good_images)


@pytest.fixture(scope="module")
def folder(image_detector, tmp_path_factory):
    """The detector as files, and images to score."""
    folder = tmp_path_factory.mktemp("files")
    image_detector.save(folder / "part.skpbas")
    to_onnx(image_detector, folder / "part.onnx")
    for index, image in enumerate(textured_images(12, seed=4)):
        image[: 4 * index, :20] = 255
        Image.fromarray(image).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def images(folder):
    return sorted(folder.glob("*.png"))


def scores(results):
    return [result.score for result in sorted(results)]


# Results --------------------------------------------------------------------------------------------------


def test_a_saved_file_gives_the_scores_of_the_detector_to_the_last_bit(client, folder, images, image_detector):
    path = folder / "part.skpbas"
    results = sorted(score_images(path, images, client=client, batch_size=2))
    assert scores(results) == scores(score_images(image_detector, images, client=client, batch_size=2))
    assert [result.label for result in results] == image_detector.predict(images).tolist()
    assert {1, -1} == {result.label for result in results}
    assert all(result.margin == result.score - image_detector.offset_ for result in results)
    assert [result.p_value for result in results] == image_detector.p_values(images).tolist()


def test_an_onnx_file_gives_the_scores_of_the_onnx_detector(client, folder, images):
    path = folder / "part.onnx"
    alone = OnnxDetector(path, n_threads=_n_threads())
    results = sorted(score_images(str(path), images, client=client, batch_size=2))
    assert scores(results) == alone.score_samples(images).tolist()
    assert [result.label for result in results] == alone.predict(images).tolist()
    assert all(result.margin == result.score - alone.offset_ for result in results)
    assert [result.p_value for result in results] == alone.p_values(images).tolist()


def test_a_table_of_an_onnx_file_has_margins_labels_and_p_values(client, folder, images, tmp_path):
    named = [*images, tmp_path / "gone.png"]
    score_images(folder / "part.onnx", named, client=client, output=tmp_path / "out", batch_size=5)
    alone, rows = OnnxDetector(folder / "part.onnx"), pyarrow.dataset.dataset(tmp_path / "out").to_table().to_pylist()
    assert [row["label"] for row in rows] == [*alone.predict(images).tolist(), None]
    assert [row["p_value"] for row in rows] == [*alone.p_values(images).tolist(), None]
    np.testing.assert_allclose([row["margin"] for row in rows], [*alone.decision_function(images), np.nan], rtol=1e-5)


def test_unreadable_images_are_named_and_the_others_scored(client, folder, images, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    named = [images[0], tmp_path / "text.png", tmp_path / "gone.png", images[1]]
    results = sorted(score_images(folder / "part.onnx", named, client=client))
    assert [result.label is None for result in results] == [False, True, True, False]
    assert results[1].error.startswith(f"{named[1]} is not an image")
    assert results[2].error == f"{named[2]}: no such file"


@pytest.mark.parametrize("name", ["part.skpbas", "part.onnx"])
def test_a_file_that_is_replaced_or_deleted_during_the_run_changes_nothing(name, client, folder, images, tmp_path):
    path = tmp_path / name
    path.write_bytes((folder / name).read_bytes())
    stream = score_images(path, iter(images), client=client, batch_size=1, max_in_flight=1)
    path.unlink()
    assert scores(stream) == scores(score_images(folder / name, images, client=client))


def test_results_of_a_file_are_continued_by_the_same_content_only(client, folder, images, image_detector, tmp_path):
    of_saved, of_onnx = tmp_path / "saved", tmp_path / "onnx"
    moved = tmp_path / "moved.onnx"
    moved.write_bytes((folder / "part.onnx").read_bytes())
    assert score_images(folder / "part.skpbas", images, client=client, output=of_saved).n_resumed == 0
    assert score_images(image_detector, images, client=client, output=of_saved).n_resumed == len(images)
    assert score_images(folder / "part.onnx", images, client=client, output=of_onnx).n_resumed == 0
    assert score_images(moved, images, client=client, output=of_onnx).n_resumed == len(images)
    with pytest.raises(ResultsError, match=r"another detector: OnnxDetector, .* now PBASDetector"):
        score_images(folder / "part.skpbas", images, client=client, output=of_onnx)


# What happens on workers ----------------------------------------------------------------------------------


class OnOneWorker:
    address = "tcp://127.0.0.1:1"

    def __init__(self, folder):
        self.local_directory = str(folder)


def plugin_on_worker(path, folder):
    plugin = pickle.loads(pickle.dumps(FilePlugin(path.read_bytes(), str(path))))
    plugin.setup(OnOneWorker(folder))
    return plugin


@pytest.mark.parametrize("name", ["part.skpbas", "part.onnx"])
def test_a_worker_opens_a_file_once_and_leaves_no_copy_behind(name, folder, images, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "skpbas.distributed._worker.open_detector",
        lambda *arguments: opened.append(arguments) or open_detector(*arguments),
    )
    plugin = plugin_on_worker(folder / name, tmp_path)
    first = plugin.detector()
    assert all(plugin.detector() is first for _ in range(3))
    assert len(opened) == 1
    assert np.isfinite(first.score_samples(images[:1])).all()
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_cannot_open_the_file_says_which_one_and_why(folder, tmp_path, monkeypatch):
    plugin = plugin_on_worker(folder / "part.onnx", tmp_path)
    for provider in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, provider, None)
    with pytest.raises(ClusterError, match=r"worker tcp://127.0.0.1:1 cannot open .*part.onnx: ImportError: .*install"):
        plugin.detector()


@pytest.mark.parametrize(("limit", "expected"), [("1", 1), ("3,2", 3), ("", None), ("0", None)])
def test_threads_of_a_runtime_are_those_that_the_worker_was_given(limit, expected, folder, monkeypatch):
    given = []
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    monkeypatch.setattr("skpbas.runtime.OnnxDetector", lambda path, n_threads: given.append(n_threads))
    open_detector((folder / "part.onnx").read_bytes(), "part.onnx")
    assert given == [expected]


WORKER = """
import json, pickle, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "sklearn", "skorch", "joblib", "safetensors"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Absent())

from distributed import Client, LocalCluster

if __name__ == "__main__":
    task, plugin = pickle.loads(bytes.fromhex(sys.stdin.readline()))
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster:
        with Client(cluster) as client:
            client.register_plugin(plugin, name="detector")
            scores, p_values, errors = client.submit(task, sys.argv[1:], "detector").result(timeout=60)
    torch = [name for name in sys.modules if name.split(".")[0] in ("torch", "sklearn")]
    print(json.dumps([scores.tolist(), p_values.tolist(), errors, torch]))
"""


def test_a_worker_without_torch_and_scikit_learn_scores_with_an_onnx_file(folder, images):
    path = folder / "part.onnx"
    sent = pickle.dumps((score_on_worker, FilePlugin(path.read_bytes(), str(path)))).hex()
    command = [sys.executable, "-c", WORKER, *map(str, images[:3])]
    ran = subprocess.run(command, input=sent, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found, p_values, errors, imported = json.loads(ran.stdout)
    assert all(0 < p_value <= 1 for p_value in p_values)
    np.testing.assert_allclose(found, OnnxDetector(path).score_samples(images[:3]), rtol=1e-5)
    assert errors == {}
    assert imported == []


# Errors on the client -------------------------------------------------------------------------------------


def test_a_missing_damaged_or_other_file_is_an_error_at_once(client, folder, images, tmp_path):
    def refused(path):
        return score_images(path, iter(images), client=client)

    with pytest.raises(FileNotFoundError, match=r"gone\.onnx'?: no such file"):
        refused(tmp_path / "gone.onnx")
    (tmp_path / "folder.skpbas").mkdir()
    with pytest.raises(FileNotFoundError, match="no such file"):
        refused(tmp_path / "folder.skpbas")
    with pytest.raises(ValueError, match=r"detector='part\.pkl' is no file with the ending \.skpbas or \.onnx"):
        refused("part.pkl")
    for name in ("part.skpbas", "part.onnx"):
        path = tmp_path / name
        path.write_bytes((folder / name).read_bytes()[:-1000])
        with pytest.raises(FileFormatError) as caught:
            refused(path)
        assert str(path) in str(caught.value)
        assert "skpbas-" not in str(caught.value).replace(str(path), "")


def decode_error():
    return UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


@pytest.mark.parametrize(
    "error", [decode_error(), json.JSONDecodeError("Expecting value", "x", 0)], ids=["text", "json"]
)
def test_errors_that_take_more_than_a_message_are_passed_on_with_the_name_of_the_file(error, monkeypatch):
    def load(path):
        raise error

    monkeypatch.setattr("skpbas.persistence.load", load)
    with pytest.raises(
        FileFormatError, match=rf"^far/part\.skpbas cannot be read \({type(error).__name__}: "
    ) as caught:
        open_detector(b"", "far/part.skpbas")
    assert str(error) in str(caught.value)


def test_an_opened_onnx_detector_is_refused_with_the_way_out(client, folder):
    with pytest.raises(TypeError, match="pass the path of its file"):
        score_images(OnnxDetector(folder / "part.onnx"), [], client=client)


def test_a_detector_whose_backbone_is_a_module_is_refused_with_the_name_of_its_file(client, good_images, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8, padding=1))
    detector = small_detector(max_epochs=1, layers=("0",), n_exemplars=50).set_params(backbone=network)
    detector.fit(good_images).save(tmp_path / "own.skpbas")
    with pytest.raises(ValueError, match=r"own\.skpbas is a detector whose backbone is a module"):
        score_images(tmp_path / "own.skpbas", [], client=client)


def test_the_package_offers_its_names_before_they_are_imported():
    assert (
        set(skpbas.distributed.__all__)
        == set(dir(skpbas.distributed))
        == {
            "ImageResult",
            "ScoringSummary",
            "score_images",
        }
    )
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        skpbas.distributed.other  # noqa: B018
    assert Path(skpbas.distributed.__file__).name == "__init__.py"
