"""Images in folders, and a detector of the good ones in a file, which the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_helpers import DEFECT, SIDE, save
from helpers import textured_images

from skpbas import PBASDetector


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Path:
    """A data set: train/good, test/good, two kinds of defects, masks of one of them."""
    root = tmp_path_factory.mktemp("parts")
    for i, image in enumerate(textured_images(12, SIDE)):
        save(image, root / "train" / "good" / f"{i}.png")
    for i, image in enumerate(textured_images(4, SIDE, seed=7)):
        save(image, root / "test" / "good" / f"{i}.png")
    for kind, seed in (("hole", 8), ("stain", 9)):
        for i, image in enumerate(textured_images(2, SIDE, seed=seed)):
            image[DEFECT, DEFECT] = 255
            save(image, root / "test" / kind / f"{i}.png")
            if kind == "hole":
                mask = np.zeros((SIDE, SIDE), np.uint8)
                mask[DEFECT, DEFECT] = 255
                save(mask, root / "ground_truth" / kind / f"{i}_mask.png")
    return root


@pytest.fixture(scope="session")
def detector(parts) -> PBASDetector:
    good = sorted((parts / "train" / "good").iterdir(), key=lambda path: int(path.stem))
    settings = {"image_size": SIDE, "max_epochs": 2, "device": "cpu", "random_state": 0, "precision": "float32"}
    return PBASDetector("embedded", **settings).fit(good)


@pytest.fixture(scope="session")
def saved(detector, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "part.skpbas"
    detector.save(path)
    return path
