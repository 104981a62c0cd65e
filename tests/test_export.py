"""An exported graph computes what the detector does, and says what the runtime needs to know."""

import builtins
import json
import os

import numpy as np
import pytest
import torch
from exports import CASES, OwnModule, fitted_detector, odd_images
from helpers import textured_images
from sklearn.exceptions import NotFittedError

from skpbas import PBASDetector
from skpbas._inputs.geometry import Geometry
from skpbas.errors import ExportError, StorageError
from skpbas.export import to_onnx
from skpbas.export._network import refusal

pytest.importorskip("onnxscript", reason="the export needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.filterwarnings("ignore:.*discards up to:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_a_graph_computes_the_scores_and_maps_of_its_detector(case, good_images, tmp_path):
    detector = fitted_detector(good_images, **CASES[case])
    to_onnx(detector, tmp_path / "detector.onnx")
    graph = session(tmp_path / "detector.onnx")
    for n, height, width in ((1, 64, 64), (5, 64, 64), (2, 150, 101), (1, 40, 52), (1, *detector.map_shape_)):
        images = odd_images(n, height, width)
        scores, anomaly_maps = graph.run(["score", "map"], {"images": images})
        np.testing.assert_allclose(scores, -detector.score_samples(images), rtol=1e-4)
        np.testing.assert_allclose(anomaly_maps, detector.anomaly_map(images), rtol=0, atol=1e-3)
        assert scores.shape == (n,)
        assert anomaly_maps.dtype == np.float32


@pytest.mark.filterwarnings("ignore:.*discards up to:UserWarning")
@pytest.mark.parametrize("resize", ["aspect", "crop"])
def test_openvino_computes_the_same_from_a_graph_of_open_shape(resize, good_images, tmp_path):
    core = pytest.importorskip("openvino", reason="OpenVINO is not installed").Core()
    detector = fitted_detector(good_images, resize=resize)
    to_onnx(detector, tmp_path / "detector.onnx")
    graph = core.compile_model(str(tmp_path / "detector.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for n, height, width in ((1, 100, 80), (1, 64, 64), (3, 64, 64), (2, 50, 70)):
        images = odd_images(n, height, width)
        np.testing.assert_allclose(graph({"images": images})["score"], -detector.score_samples(images), rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "view"),
    [((90, 70), (32, 32)), ((20, 70), (32, 48)), ((33, 51), (32, 48)), ((101, 300), (33, 33)), ((32, 49), (32, 48))],
)
@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resizing_without_torch_gives_the_views_of_torch(shape, view, resize, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    image = pixels if dtype == np.uint8 else pixels / np.float32(255)
    geometry = Geometry.of(shape, view, resize)
    expected = geometry.view(torch.from_numpy(image).movedim(-1, 0)).movedim(0, -1).numpy()
    rounding = 0 if dtype == np.uint8 else 1e-5  # torch rounds the weights of floats to float32
    np.testing.assert_allclose(geometry.view_of_array(image), expected, rtol=0, atol=rounding)


def test_an_image_as_unlike_as_an_empty_frame_gets_the_same_evidence_in_the_graph(good_images, tmp_path):
    detector = fitted_detector(good_images)
    empty = np.zeros((1, 64, 64, 3), np.uint8)
    assert detector.model_.whole_images.unit > 0
    to_onnx(detector, tmp_path / "detector.onnx")
    (scores,) = session(tmp_path / "detector.onnx").run(["score"], {"images": empty})
    np.testing.assert_allclose(scores, -detector.score_samples(empty), rtol=1e-4)


def test_a_detector_of_16_bit_images_takes_floats(good_images, tmp_path):
    detector = fitted_detector(good_images.astype(np.uint16) * 257)
    to_onnx(detector, tmp_path / "detector.onnx")
    graph = session(tmp_path / "detector.onnx")
    assert graph.get_inputs()[0].type == "tensor(float)"
    images = np.random.default_rng(0).random((2, 90, 75, 3), np.float32)
    (scores,) = graph.run(["score"], {"images": images})
    np.testing.assert_allclose(scores, -detector.score_samples(images), rtol=1e-4)


def test_the_export_of_a_detector_in_bfloat16_is_in_float32_and_leaves_it_as_it_is(good_images, tmp_path):
    detector = fitted_detector(good_images, precision="bfloat16")
    images = odd_images(2, 64, 64)
    before = detector.score_samples(images)
    to_onnx(detector, tmp_path / "detector.onnx")
    np.testing.assert_array_equal(detector.score_samples(images), before)
    (scores,) = session(tmp_path / "detector.onnx").run(["score"], {"images": images})
    assert detector.model_.extractor.precision == torch.bfloat16
    np.testing.assert_allclose(scores, -before, rtol=0.05)  # 8 bits, and some layers


def test_the_metadata_say_how_scores_are_judged(good_images, tmp_path):
    detector = fitted_detector(good_images)
    to_onnx(detector, tmp_path / "detector.onnx")
    metadata = json.loads(session(tmp_path / "detector.onnx").get_modelmeta().custom_metadata_map["skpbas"])
    judge = detector._judge(0.05)
    assert metadata["offset"] == detector.offset_
    assert metadata["map_threshold"] == detector.map_threshold_
    assert metadata["unsure_offset"] == judge.unsure_offset
    assert metadata["normal_scores"] == sorted(metadata["normal_scores"]) == judge.normal_scores.tolist()
    assert metadata["map_shape"] == [64, 64]
    assert metadata["settings"]["backbone"] == "embedded"
    assert {"skpbas", "torch"} <= set(metadata["versions"])


def test_a_file_names_no_path_of_this_machine(good_images, tmp_path):
    detector = fitted_detector(good_images, backbone="module", layers=["1", "2"], memory=str(tmp_path / "cache"))
    to_onnx(detector, tmp_path / "detector.onnx")
    content = (tmp_path / "detector.onnx").read_bytes()
    assert os.fsencode(tmp_path) not in content
    assert b".py" not in content


def test_an_export_replaces_a_file_and_leaves_no_other(fitted, tmp_path):
    target = tmp_path / "detector.onnx"
    target.write_text("an older one")
    to_onnx(fitted, target, opset=18)
    assert session(target).get_inputs()[0].shape == ["n", "H", "W", 3]
    assert list(tmp_path.iterdir()) == [target]


def test_a_refusal_by_an_older_torch_says_which_version_to_update_to(fitted, monkeypatch):
    assert "update" not in str(refusal(fitted, "torch.onnx", ValueError("no")))
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    told = str(refusal(fitted, "torch.onnx", ValueError("no")))
    assert told.endswith("; this is torch 2.9.1+cpu: update to 2.14 or newer first")


def test_a_failed_export_leaves_the_file_that_was_there(good_images, tmp_path):
    class Unknown(torch.autograd.Function):
        @staticmethod
        def forward(_context, x):
            return torch.from_numpy(np.sort(x.numpy(), axis=1))

    class Sorting(torch.nn.Module):
        def forward(self, x):
            return Unknown.apply(x)

    class Exotic(OwnModule):
        def __init__(self):
            super().__init__()
            self.add_module("sorting", Sorting())

    target = tmp_path / "detector.onnx"
    target.write_text("an older one")
    detector = fitted_detector(good_images, backbone=Exotic(), layers=["1", "sorting"])
    with pytest.raises(ExportError, match=r"backbone Exotic: torch\.onnx cannot export it: \w+: "):
        to_onnx(detector, target)
    assert target.read_text() == "an older one"
    assert list(tmp_path.iterdir()) == [target]


def test_only_fitted_detectors_and_known_operators_are_exported(fitted, tmp_path):
    with pytest.raises(NotFittedError):
        to_onnx(PBASDetector(), tmp_path / "detector.onnx")
    with pytest.raises(TypeError, match="got str: export its detector_"):
        to_onnx("detector", tmp_path / "detector.onnx")
    for opset in (17, "18", 18.5):
        with pytest.raises(ValueError, match="opset="):
            to_onnx(fitted, tmp_path / "detector.onnx", opset=opset)


def test_a_missing_package_is_named_with_its_extra(fitted, tmp_path, monkeypatch):
    imported = builtins.__import__

    def without_onnxscript(name, *args, **kwargs):
        if name == "onnxscript":
            raise ImportError(f"No module named {name!r}")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_onnxscript)
    with pytest.raises(ImportError, match=r"onnxscript.*pip install skpbas\[onnx\]"):
        to_onnx(fitted, tmp_path / "detector.onnx")


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"nowhere.part\.onnx cannot be written"):
        to_onnx(fitted_detector(textured_images(6)), tmp_path / "nowhere" / "part.onnx")
