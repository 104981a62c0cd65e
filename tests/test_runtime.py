"""Prediction without torch: the same answers from the same images, and no import of what is not there."""

import itertools
import json
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from helpers import small_detector, textured_images
from PIL import Image
from scipy import ndimage

from skpbas._decisions.regions import connected
from skpbas._inputs.geometry import Geometry
from skpbas.errors import FileFormatError, InvalidImageError
from skpbas.export import to_onnx, to_torch
from skpbas.masks import ignoring
from skpbas.runtime import OnnxDetector
from skpbas.runtime._providers import PROVIDERS

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

SETTINGS = {
    "whole": {},
    "crop": {"resize": "crop", "image_size": 48},
    "tiles": {"tile": 40, "image_size": 48},
    "distance": {"patch_score": "distance"},
}


@pytest.fixture(scope="module")
def exported(good_images, tmp_path_factory):
    """For each setting a detector, and the file of its export."""
    folder = tmp_path_factory.mktemp("exported")
    pairs = {}
    for name, params in SETTINGS.items():
        detector = small_detector(precision="float32", max_epochs=2, **params).set_params(backbone="embedded")
        to_onnx(detector.fit(good_images), folder / f"{name}.onnx")
        pairs[name] = detector, folder / f"{name}.onnx"
    return pairs


@pytest.fixture(scope="module")
def images():
    """8-bit images of several sizes that were not in fit: normal ones, a defect, and an empty frame."""
    first, second, third, fourth = textured_images(4, 64, seed=5)
    second[20:34, 30:50] = 255
    wide = textured_images(1, 96, seed=6)[0, :70]
    return [first, second, wide, third, fourth[..., 0], Image.fromarray(first), np.zeros((64, 64, 3), np.uint8)]


@pytest.mark.filterwarnings("ignore:.*discards up to:UserWarning")
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", SETTINGS)
def test_all_methods_answer_as_those_of_the_detector(name, provider, exported, images):
    pytest.importorskip(provider, reason=f"{provider} is not installed")
    detector, path = exported[name]
    runtime = OnnxDetector(path, provider=provider, n_threads=1)
    assert runtime.provider == provider
    scores = detector.score_samples(images)
    np.testing.assert_allclose(runtime.score_samples(images), scores, rtol=1e-4)
    margins = detector.decision_function(images)
    np.testing.assert_allclose(runtime.decision_function(images), margins, rtol=0, atol=1e-4 * abs(scores).max())
    np.testing.assert_array_equal(runtime.predict(images), detector.predict(images))
    np.testing.assert_array_equal(runtime.verdicts(images), detector.verdicts(images))
    np.testing.assert_array_equal(runtime.p_values(images), detector.p_values(images))
    for size in ("model", "input"):
        for actual, expected in zip(runtime.anomaly_map(images, size), detector.anomaly_map(images, size), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3)
        for actual, expected in zip(
            runtime.anomaly_mask(images, size), detector.anomaly_mask(images, size), strict=True
        ):
            assert (actual != expected).mean() < 0.002  # pixels at the threshold but for rounding
    for actual, expected in zip(runtime.find_regions(images), detector.find_regions(images), strict=True):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert abs(one.score - other.score) < 1e-3


def test_a_detector_of_16_bit_images_reads_all_types_without_rounding(good_images, tmp_path):
    detector = small_detector(precision="float32", max_epochs=2).set_params(backbone="embedded")
    to_onnx(detector.fit(good_images.astype(np.uint16) * 257), tmp_path / "detector.onnx")
    first, second, third = textured_images(3, 80, seed=5)
    images = [first.astype(np.uint16) * 257 + 100, second / np.float32(255), third / 255]
    expected = detector.score_samples(images)
    np.testing.assert_allclose(OnnxDetector(tmp_path / "detector.onnx").score_samples(images), expected, rtol=1e-4)


def test_a_detector_of_8_bit_images_rounds_others_to_8_bits(exported):
    images = textured_images(2, 64, seed=5)
    runtime = OnnxDetector(exported["whole"][1])
    for same in (images.astype(np.uint16) * 257, images / 255):
        np.testing.assert_array_equal(runtime.score_samples(same), runtime.score_samples(images))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_threads_that_share_a_detector_get_the_scores_of_their_own_images(provider, exported, images):
    pytest.importorskip(provider, reason=f"{provider} is not installed")
    detector = OnnxDetector(exported["whole"][1], provider=provider, n_threads=1)
    alone = [detector.score_samples([image])[0] for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: detector.score_samples([image])[0], images * 5))
    np.testing.assert_array_equal(together, alone * 5)


def test_results_of_a_stream_come_in_order_one_image_at_a_time(exported, images):
    detector, path = exported["whole"]
    taken = []

    def frames():
        for index in itertools.count():
            taken.append(index)
            yield images[index % 2] if index != 2 else np.zeros((3, 3), np.uint8)

    results = list(itertools.islice(OnnxDetector(path).iter_results(frames(), on_error="skip"), 4))
    assert taken == [0, 1, 2, 3]
    assert [result.index for result in results] == [0, 1, 2, 3]
    assert "smaller than 16" in results[2].error
    for result, expected in zip(results[:2], detector.score_stream(images[:2]), strict=True):
        assert (result.name, result.label, result.verdict) == (expected.name, expected.label, expected.verdict)
        assert result.p_value == expected.p_value
        np.testing.assert_allclose(result.map, expected.map, rtol=0, atol=1e-3)
    with pytest.raises(InvalidImageError, match=r"images\[2\]"):
        list(itertools.islice(OnnxDetector(path).iter_results(frames(), maps=False), 4))


def test_files_are_read_upright_and_blended_with_white_as_by_the_detector(exported, tmp_path):
    detector, path = exported["whole"]
    pixels = textured_images(1, 64, seed=8)[0][:50]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    opacity = np.full((50, 64, 1), 255, np.uint8)
    opacity[:20] = 100
    Image.fromarray(np.concatenate([pixels, opacity], axis=2)).save(tmp_path / "transparent.png")
    paths = [tmp_path / "turned.png", str(tmp_path / "transparent.png")]
    for method in ("score_samples", "decision_function"):
        with pytest.warns(UserWarning, match="transparent"):
            expected = getattr(detector, method)(paths)
        with pytest.warns(UserWarning, match="transparent"):
            found = getattr(OnnxDetector(path), method)(paths)
        np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert OnnxDetector(path).anomaly_map(paths[:1], size="input")[0].shape == (64, 50)


def warnings_of(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert {warning.category for warning in caught} <= {UserWarning}
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("whole", lambda image: image // 4),
        ("whole", lambda image: image[..., 0]),
        ("whole", lambda image: image.astype(np.uint16)),
        ("whole", lambda image: np.concatenate([image, image], axis=1)),
        ("whole", lambda image: image[::3, ::3]),
        ("tiles", lambda image: image / 255**2),
        ("crop", lambda image: np.concatenate([image, image], axis=1)),
    ],
)
def test_images_unlike_those_of_fit_raise_the_warnings_of_the_detector(name, change, exported):
    detector, path = exported[name]
    images = [change(image) for image in textured_images(3, seed=5)]
    runtime = OnnxDetector(path, n_threads=1)
    expected = warnings_of(lambda: detector.score_samples(images))
    assert expected
    for method in ("score_samples", "predict", "anomaly_map", "anomaly_mask", "find_regions"):
        call = getattr(runtime, method)
        assert warnings_of(partial(call, images)) == expected
    assert runtime.good_statistics_ == detector.good_statistics_


def test_good_images_raise_no_warning(exported):
    runtime = OnnxDetector(exported["whole"][1])
    assert warnings_of(lambda: runtime.score_samples(textured_images(8, seed=5))) == []


def test_a_stream_warns_once_of_each_difference_when_it_occurs(exported):
    detector, path = exported["whole"]
    good, dark = textured_images(1, seed=5)[0], textured_images(1, seed=5)[0] // 4
    frames = [good, dark, dark, good]
    for make in (detector.score_stream, OnnxDetector(path, n_threads=1).iter_results):
        results = make(iter(frames), maps=False)
        assert [len(warnings_of(partial(next, results))) for _ in frames] == [0, 1, 0, 0]


@pytest.mark.parametrize("rate", [0.01, 0.4])
def test_verdicts_are_those_at_the_rate_of_the_export(rate, exported, good_images, tmp_path):
    detector, _ = exported["whole"]
    to_onnx(detector, tmp_path / "detector.onnx", unsure_rate=rate)
    runtime = OnnxDetector(tmp_path / "detector.onnx", n_threads=1)
    assert runtime.metadata_["unsure_rate"] == rate
    images = textured_images(20, seed=5)
    for index, image in enumerate(images):
        image[20:40, 20:40] += np.uint8(index)  # ever clearer defects
    found = runtime.verdicts(images)
    assert found.tolist() == detector.verdicts(images, unsure_rate=rate).tolist()
    assert ("unsure" in found) == (rate > detector.false_alarm_rate)
    for wrong in (0, 0.6, "often"):
        with pytest.raises(ValueError, match="unsure_rate="):
            to_onnx(detector, tmp_path / "detector.onnx", unsure_rate=wrong)


def test_unusable_images_are_errors_that_name_them(exported, tmp_path):
    detector = OnnxDetector(exported["whole"][1])
    with pytest.raises(InvalidImageError, match=r"X\[1\] .* no such file"):
        detector.predict([np.zeros((64, 64), np.uint8), tmp_path / "missing.png"])
    with pytest.raises(InvalidImageError, match=r"pass a single image as X\[None\]"):
        detector.predict(np.zeros((64, 64, 3), np.uint8))
    for call in (
        lambda: detector.anomaly_map(np.zeros((1, 64, 64), np.uint8), size="other"),
        lambda: detector.find_regions(np.zeros((1, 64, 64), np.uint8), min_area=0),
        lambda: detector.iter_results([], on_error="ignore"),
    ):
        with pytest.raises(ValueError, match=r"size=|min_area=|on_error="):
            call()


def test_a_file_that_takes_no_regions_says_how_to_export_one_that_does(exported, tmp_path):
    detector, path = exported["whole"]
    runtime, images = OnnxDetector(path, n_threads=1), textured_images(2, 64, seed=5)
    with pytest.raises(InvalidImageError, match=r"X\[1\] has ignored regions.*to_onnx\(detector, path, ignored=True\)"):
        runtime.predict(ignoring(images, [None, np.eye(64, dtype=bool)]))
    np.testing.assert_array_equal(
        runtime.score_samples(ignoring(images, np.zeros((64, 64), bool))), runtime.score_samples(images)
    )
    for export in (to_onnx, to_torch):
        with pytest.raises(ValueError, match="ignored='yes': choose True, False or None"):
            export(detector, tmp_path / "detector", ignored="yes")


def test_a_file_that_is_no_detector_is_refused(exported, tmp_path):
    path = tmp_path / "detector.onnx"
    with pytest.raises(FileNotFoundError, match="no such file"):
        OnnxDetector(path)
    path.write_bytes(b"not a graph")
    with pytest.raises(FileFormatError, match="cannot be read as an ONNX file"):
        OnnxDetector(path)
    proto = onnx.load(exported["whole"][1])
    metadata = json.loads(proto.metadata_props[0].value)
    for text, message in (
        (json.dumps({**metadata, "format": 99}), "has format 99"),
        (json.dumps({**metadata, "good_statistics": {}}), "no valid good_statistics"),
        ("{", "is damaged"),
    ):
        proto.metadata_props[0].value = text
        onnx.save(proto, path)
        with pytest.raises(FileFormatError, match=message):
            OnnxDetector(path)
    proto.ClearField("metadata_props")
    onnx.save(proto, path)
    with pytest.raises(FileFormatError, match="is not a detector"):
        OnnxDetector(path)
    for options in ({"provider": "torch"}, {"n_threads": 0}):
        with pytest.raises(ValueError, match=r"provider=|n_threads="):
            OnnxDetector(exported["whole"][1], **options)


def test_without_a_runtime_the_error_names_the_extras(exported, monkeypatch):
    for name in PROVIDERS:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install skpbas\[onnx\] or skpbas\[openvino\]"):
        OnnxDetector(exported["whole"][1])


BARE = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent} or name == "skpbas.estimator":
            raise ImportError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Absent())
import numpy as np
from skpbas.runtime import OnnxDetector

detector = OnnxDetector(sys.argv[1], provider="onnxruntime", n_threads=1)
images = np.load(sys.argv[2])
regions = detector.find_regions(images)
results = list(detector.iter_results(images))
print(json.dumps([detector.score_samples(images).tolist(), [len(r) for r in regions], [r.verdict for r in results]]))
"""


@pytest.mark.parametrize("name", ["whole", "tiles"])
def test_a_machine_without_torch_scikit_learn_and_scipy_predicts_the_same(name, exported, images, tmp_path):
    detector, path = exported[name]
    stack = np.stack(images[:2])
    np.save(tmp_path / "images.npy", stack)
    absent = {"torch", "torchvision", "sklearn", "scipy", "joblib", "skorch", "tqdm", "safetensors", "onnx"}
    command = [sys.executable, "-W", "error", "-c", BARE.format(absent=absent), path, tmp_path / "images.npy"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    scores, n_regions, verdicts = json.loads(ran.stdout)
    np.testing.assert_allclose(scores, detector.score_samples(stack), rtol=1e-4)
    assert n_regions == [len(regions) for regions in detector.find_regions(stack)]
    assert verdicts == detector.verdicts(stack).tolist()


@pytest.mark.parametrize("share", [0, 0.1, 0.3, 0.5, 0.8, 1])
@pytest.mark.parametrize("shape", [(1, 1), (1, 20), (20, 1), (31, 17), (64, 64)])
def test_connected_pixels_are_those_of_scipy(shape, share):
    mask = np.random.default_rng(0).random(shape) < share
    labels, n = ndimage.label(mask, structure=np.ones((3, 3)))
    found = connected(mask)
    assert len(found) == n
    for label, (rows, columns) in enumerate(found, 1):
        placed = np.zeros(shape, bool)
        placed[rows, columns] = True
        np.testing.assert_array_equal(placed, labels == label)


def test_a_long_winding_line_is_one_set():
    mask = np.zeros((41, 41), bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    assert len(connected(mask)) == 1
    assert len(connected(mask & (np.arange(41) > 0))) == 11


@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_a_map_at_the_size_of_its_image_needs_no_torch(resize):
    torch = pytest.importorskip("torch")
    anomaly_map = np.random.default_rng(0).random((32, 32), np.float32)
    geometry = Geometry.of((50, 77), (32, 32), resize)
    expected = geometry.to_input(torch.from_numpy(anomaly_map)).numpy()
    np.testing.assert_allclose(geometry.array_to_input(anomaly_map), expected, rtol=0, atol=1e-6)


# bfloat16 -------------------------------------------------------------------------------------------------


@pytest.fixture
def in_bfloat16():
    """Open a file in bfloat16, or skip where that is not possible."""
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no instructions for bfloat16")
    return lambda path: OnnxDetector(path, precision="bfloat16", n_threads=1)


@pytest.mark.filterwarnings("ignore:.*discards up to:UserWarning")
@pytest.mark.parametrize("name", SETTINGS)
def test_in_bfloat16_scores_and_maps_are_those_of_float32_but_for_its_rounding(name, exported, images, in_bfloat16):
    exact, rounded = OnnxDetector(exported[name][1], n_threads=1), in_bfloat16(exported[name][1])
    scores = exact.score_samples(images)
    np.testing.assert_allclose(rounded.score_samples(images), scores, rtol=0.1)  # 8 bits, over some layers
    assert (rounded.score_samples(images) != scores).any()  # it was computed otherwise
    for actual, expected in zip(rounded.anomaly_map(images), exact.anomaly_map(images), strict=True):
        assert np.abs(actual - expected).mean() < 0.02  # single features of so small a network may cancel


def test_threads_that_share_a_detector_in_bfloat16_get_the_scores_of_their_own_images(exported, images, in_bfloat16):
    detector = in_bfloat16(exported["whole"][1])
    alone = [detector.score_samples([image])[0] for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: detector.score_samples([image])[0], images * 3))
    np.testing.assert_array_equal(together, alone * 3)


def test_bfloat16_is_refused_where_it_cannot_be_had(exported, monkeypatch):
    path = exported["whole"][1]
    with pytest.raises(ValueError, match="precision='float16': choose"):
        OnnxDetector(path, precision="float16")
    with pytest.raises(ValueError, match="precision='bfloat16' needs provider='openvino'"):
        OnnxDetector(path, provider="onnxruntime", precision="bfloat16")
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "INT8"])
    with pytest.raises(ValueError, match="this processor has no instructions for it"):
        OnnxDetector(path, precision="bfloat16")
