"""A program of torch.export computes what the detector does, where skpbas is not installed."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from exports import CASES, TORCH, OwnModule, fitted_detector, odd_images
from sklearn.exceptions import NotFittedError

from skpbas import PBASDetector
from skpbas.errors import ExportError
from skpbas.export import to_torch

ALL = {**CASES, "tiles": {"tile": 48}}


def opened(path):
    return torch.export.load(path).module()


@pytest.mark.filterwarnings("ignore:.*discards up to:UserWarning")
@pytest.mark.parametrize("case", ALL)
def test_a_program_computes_the_scores_and_maps_of_its_detector(case, good_images, tmp_path):
    if case == "crop" and TORCH < (2, 9):
        pytest.skip("torch 2.7 cannot export the larger of two sizes")
    detector = fitted_detector(good_images, **ALL[case])
    to_torch(detector, tmp_path / "detector.pt2")
    program = opened(tmp_path / "detector.pt2")
    for n, height, width in ((1, 64, 64), (5, 64, 64), (2, 150, 101), (3, 60, 85), (1, *detector.map_shape_)):
        images = odd_images(n, height, width)
        scores, anomaly_maps = program(torch.from_numpy(images))
        np.testing.assert_allclose(scores, -detector.score_samples(images), rtol=1e-4)
        np.testing.assert_allclose(anomaly_maps, detector.anomaly_map(images), rtol=0, atol=1e-3)
        assert scores.shape == (n,)


def test_a_detector_of_16_bit_images_takes_floats(good_images, tmp_path):
    detector = fitted_detector(good_images.astype(np.uint16) * 257)
    to_torch(detector, tmp_path / "detector.pt2")
    images = np.random.default_rng(0).random((2, 90, 75, 3), np.float32)
    scores, _ = opened(tmp_path / "detector.pt2")(torch.from_numpy(images))
    np.testing.assert_allclose(scores, -detector.score_samples(images), rtol=1e-4)


def test_the_extra_file_says_how_scores_are_judged(fitted, tmp_path):
    to_torch(fitted, tmp_path / "detector.pt2")
    extra = {"skpbas.json": ""}
    torch.export.load(tmp_path / "detector.pt2", extra_files=extra)
    metadata = json.loads(extra["skpbas.json"])
    assert metadata["offset"] == fitted.offset_
    assert metadata["map_threshold"] == fitted.map_threshold_
    assert metadata["settings"]["backbone"] == "resnet18"


def test_a_program_runs_where_skpbas_cannot_be_imported(fitted, good_images, tmp_path):
    to_torch(fitted, tmp_path / "detector.pt2")
    np.save(tmp_path / "images.npy", good_images)
    code = (
        "import sys; sys.modules['skpbas'] = None\n"
        "import numpy as np, torch\n"
        "program = torch.export.load('detector.pt2').module()\n"
        "np.save('scores.npy', program(torch.from_numpy(np.load('images.npy')))[0].numpy())"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, check=True)
    exact = fitted.to("cpu")
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), -as_new(exact, good_images), rtol=0.02)


def as_new(detector, images):
    """Score images that the detector does not recognize: one bit differs."""
    other = images.copy()
    other[:, 0, 0, 0] ^= 1
    return detector.score_samples(other)


def test_a_backbone_that_cannot_be_exported_is_named_and_no_file_is_left(good_images, tmp_path):
    class Branching(torch.nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > -1 else -x

    class Exotic(OwnModule):
        def __init__(self):
            super().__init__()
            self.add_module("branching", Branching())

    detector = fitted_detector(good_images, backbone=Exotic(), layers=["1", "branching"])
    with pytest.raises(ExportError, match=r"backbone Exotic: torch\.export cannot export it: \w+: "):
        to_torch(detector, tmp_path / "detector.pt2")
    assert list(tmp_path.iterdir()) == []


def test_only_a_fitted_detector_is_exported(tmp_path):
    with pytest.raises(NotFittedError):
        to_torch(PBASDetector(), tmp_path / "detector.pt2")
    with pytest.raises(TypeError, match="got str"):
        to_torch("detector", tmp_path / "detector.pt2")
