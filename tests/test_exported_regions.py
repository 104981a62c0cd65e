"""Exported detectors leave out ignored regions as the detector does, in scores, maps and regions."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from exports import fitted_detector, odd_images
from helpers import textured_images
from hypothesis import given
from hypothesis import strategies as st

from skpbas._inputs.geometry import Geometry
from skpbas.errors import InvalidImageError
from skpbas.export import to_onnx, to_torch
from skpbas.export._ignored_pixels import Regions
from skpbas.masks import ignoring
from skpbas.runtime import OnnxDetector
from skpbas.runtime._providers import PROVIDERS

pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:.*discards up to:UserWarning", "ignore:.*distorted:UserWarning")

SETTINGS = {
    "whole": {"image_size": 96, "scales": (1.0, 0.5)},
    "crop of 16 bits": {"resize": "crop", "image_size": 48},
    "tiles": {"tile": 40, "image_size": 48},
}


def region(height, width, kind):
    """A mask of an image: its corner, all but a corner, one pixel, or everything."""
    mask = np.zeros((height, width), bool)
    mask[: height // 4, : width // 3] = kind == "stamp"
    mask[height // 2, width // 2] = kind == "pixel"
    if kind in ("background", "everything"):
        mask[:] = True
        mask[height // 4 :, width // 4 :] = kind == "everything"
    return mask


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """For each setting a detector, and the file of its export: the first was fitted with ignored regions."""
    folder = tmp_path_factory.mktemp("exported")
    pairs, good = {}, textured_images(12)
    for name, params in SETTINGS.items():
        X = good.astype(np.uint16) * 257 if "16 bits" in name else good
        X = ignoring(X, region(64, 64, "stamp")) if name == "whole" else X
        detector = fitted_detector(X, **params)
        to_onnx(detector, folder / f"{name}.onnx", ignored=None if name == "whole" else True)
        pairs[name] = detector, folder / f"{name}.onnx"
    return pairs


def images_and_masks():
    """Images of several sizes, an empty one among them, and masks of which the second is None."""
    images = [*odd_images(2, 64, 64), *odd_images(1, 150, 101), *odd_images(1, 96, 96), np.zeros((64, 64, 3), np.uint8)]
    kinds = ["stamp", None, "background", "pixel", "pixel"]
    return images, [kind and region(*image.shape[:2], kind) for image, kind in zip(images, kinds, strict=True)]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", SETTINGS)
def test_all_methods_leave_out_what_the_detector_leaves_out(name, provider, exported):
    pytest.importorskip(provider, reason=f"{provider} is not installed")
    detector, path = exported[name]
    runtime = OnnxDetector(path, provider=provider, n_threads=1)
    images, masks = images_and_masks()
    if "16 bits" in name:
        images = [image.astype(np.uint16) * 257 for image in images]  # of 8 bits, filled pixels would be rounded
    X = ignoring(images, masks)
    scores = detector.score_samples(X)
    assert (scores != detector.score_samples(images))[[0, 2]].all()
    np.testing.assert_allclose(runtime.score_samples(X), scores, rtol=1e-4)
    np.testing.assert_allclose(runtime.score_samples(images), detector.score_samples(images), rtol=1e-4)
    np.testing.assert_array_equal(runtime.predict(X), detector.predict(X))
    for size in ("model", "input"):
        for actual, expected in zip(runtime.anomaly_map(X, size), detector.anomaly_map(X, size), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3)
            np.testing.assert_array_equal(actual == 0, expected == 0)
        for actual, expected in zip(runtime.anomaly_mask(X, size), detector.anomaly_mask(X, size), strict=True):
            assert (actual != expected).mean() < 0.002  # pixels at the threshold but for rounding
    for actual, expected in zip(runtime.find_regions(X), detector.find_regions(X), strict=True):
        assert [found.bbox for found in actual] == [found.bbox for found in expected]
    results = list(runtime.iter_results(ignoring(iter(images), iter(masks))))
    np.testing.assert_allclose([result.score for result in results], scores, rtol=1e-4)
    np.testing.assert_allclose(results[0].map, detector.anomaly_map(X[:1])[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", SETTINGS)
def test_unusable_regions_raise_the_errors_of_the_detector(name, exported, tmp_path):
    detector, path = exported[name]
    runtime, image = OnnxDetector(path, n_threads=1), odd_images(1, 96, 96)
    middle = np.zeros((96, 96), bool)
    middle[20:76, 20:76] = True  # all but the edge, of which no patch of the smaller scale consists
    unusable = [region(96, 96, "everything"), region(64, 96, "stamp"), tmp_path / "none.png"]
    for mask in [*unusable, middle] if name == "whole" else unusable:
        messages = []
        for each in (detector, runtime):
            with pytest.raises(InvalidImageError) as raised:
                each.predict(ignoring(image, [mask]))
            messages.append(str(raised.value))
        assert messages[0] == messages[1]
        assert "X[0]" in messages[0]
    (result,) = runtime.iter_results(ignoring(image, unusable[0]), on_error="skip")
    assert "leaves nothing of it" in result.error


@pytest.mark.parametrize("name", ["whole", "crop of 16 bits"])
def test_a_graph_takes_masks_at_the_size_of_several_images(name, exported):
    detector, path = exported[name]
    graph = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [given.name for given in graph.get_inputs()] == ["images", "ignored"]
    for height, width in ((64, 64), (150, 101), detector.map_shape_):
        images = odd_images(4, height, width)
        kinds = ("stamp", "background", "pixel", "everything")
        masks = np.stack([region(height, width, kind) for kind in kinds])
        given = images / np.float32(255) if "16 bits" in name else images
        scores, maps, counted = graph.run(["score", "map", "counted"], {"images": given, "ignored": masks})
        X = ignoring(given[:3], masks[:3])
        np.testing.assert_allclose(scores[:3], -detector.score_samples(X), rtol=1e-4)
        np.testing.assert_allclose(maps[:3], detector.anomaly_map(X), rtol=0, atol=1e-3)
        assert np.isnan(scores[3])
        assert counted.shape == (4, len(detector.scales))
        assert (counted[3] == 0).all()


@pytest.mark.parametrize("params", [{"resize": "crop", "image_size": 48}, {"tile": 40, "image_size": 48}])
def test_a_program_takes_masks_at_the_size_of_its_images(params, tmp_path):
    detector = fitted_detector(textured_images(12), **params)
    to_torch(detector, tmp_path / "detector.pt2", ignored=True)
    program = torch.export.load(tmp_path / "detector.pt2").module()
    for height, width in ((64, 64), (150, 101), detector.map_shape_):
        images = odd_images(4, height, width)
        masks = [region(height, width, kind) for kind in ("stamp", "background", "pixel", "everything")]
        scores, maps = program(torch.from_numpy(images), torch.from_numpy(np.stack(masks)))
        X = ignoring(images[:3], masks[:3])
        np.testing.assert_allclose(scores[:3], -detector.score_samples(X), rtol=1e-4)
        np.testing.assert_allclose(maps[:3], detector.anomaly_map(X), rtol=0, atol=1e-3)
        assert scores[3].isnan()


BARE = """
import sys
sys.modules.update(dict.fromkeys({absent}))  # None: not to be imported
import numpy as np
from skpbas.masks import ignoring
from skpbas.runtime import OnnxDetector

detector = OnnxDetector("detector.onnx", provider="onnxruntime", n_threads=1)
np.save("scores.npy", detector.score_samples(ignoring(np.load("images.npy"), np.load("mask.npy"))))
"""


def test_a_machine_without_torch_and_scikit_learn_leaves_out_regions_too(exported, tmp_path):
    detector, path = exported["tiles"]
    images, mask = odd_images(2, 64, 64), region(64, 64, "stamp")
    shutil.copy(path, tmp_path / "detector.onnx")
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "mask.npy", mask)
    absent = ["torch", "torchvision", "sklearn", "scipy", "joblib", "skorch", "tqdm", "safetensors", "onnx"]
    command = [sys.executable, "-W", "error", "-c", BARE.format(absent=absent)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    expected = detector.score_samples(ignoring(images, mask))
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), expected, rtol=1e-4)


def test_the_metadata_say_whether_regions_are_taken(exported):
    share = region(64, 64, "stamp").mean()
    found = OnnxDetector(exported["whole"][1]).metadata_["ignored"]
    assert found["grids"] == [[12, 12], [6, 6]]
    assert (found["fillable"], found["comparable"]) == pytest.approx((share + 0.1, share + 0.05))


@given(
    *(st.integers(1, 200) for _ in range(2)),
    *(st.integers(1, 60) for _ in range(2)),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_the_pixels_of_a_view_are_those_of_its_geometry(height, width, view_height, view_width, crop, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.3
    view_shape = view_height, view_width
    regions = Regions(torch.nn.Identity(), view_shape, crop=crop, largest_share=0.0)
    at_view, erased, share = regions.of_masks(torch.from_numpy(mask)[None])
    geometry = Geometry.of((height, width), view_shape, "crop" if crop else "stretch")
    exact = geometry.view_of_mask(mask)
    around = np.pad(exact, 1)
    shifted = [around[i : i + view_height, j : j + view_width] for i in range(3) for j in range(3)]
    np.testing.assert_array_equal(at_view[0], np.any(shifted, axis=0))
    np.testing.assert_array_equal(erased[0], mask if mask.shape == view_shape else at_view[0])
    assert float(share) == pytest.approx(mask.mean())
