"""Fixtures that several tests share; the autouse fixture that seeds every test and doctest is in ../conftest.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import SHARED, small_detector, textured_images

from skpbas import PBASDetector
from skpbas.core.backbones import FeatureExtractor


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the shared measurement data is not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def good_images() -> np.ndarray:
    images = textured_images(12)
    images.setflags(write=False)
    return images


@pytest.fixture(scope="session")
def fitted(good_images) -> PBASDetector:
    return small_detector().fit(good_images)


@pytest.fixture
def backbone_calls(monkeypatch) -> list[int]:
    """The number of images, or of tiles, of each pass of a backbone."""
    calls: list[int] = []
    maps = FeatureExtractor.feature_maps

    def counted(self, images):
        calls.append(len(images))
        return maps(self, images)

    monkeypatch.setattr(FeatureExtractor, "feature_maps", counted)
    return calls
