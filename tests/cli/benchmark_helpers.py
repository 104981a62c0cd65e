"""Tiny data sets, and the command that measures them quickly."""

from __future__ import annotations

import csv

import numpy as np
from PIL import Image

from skpbas.datasets import make_inspection_images

SIDE = 32
QUICK = {"backbone": "embedded", "image_size": SIDE, "max_epochs": 2, "schedule": "constant", "n_exemplars": 16}
SETTINGS = [f"{name}={value}" for name, value in QUICK.items() if name != "backbone"]


def save(pixels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_category(folder, kind, seed=0):
    """A tiny category in MVTec AD's layout: five training images, four good and three defective test images."""
    parts = make_inspection_images(9, 3, kind=kind, size=SIDE, random_state=seed)
    for i, (image, label, mask) in enumerate(zip(parts.images, parts.labels, parts.masks, strict=True)):
        split = "train/good" if i < 5 else "test/good" if label == 1 else "test/cut"
        save(image, folder / split / f"{i}.png")
        if label == -1:
            save(255 * np.uint8(mask), folder / "ground_truth" / "cut" / f"{i}_mask.png")


def command(root, output, *more, dataset="folder"):
    where = ["--dataset", dataset, "--root", str(root), "-o", str(output), "--device", "cpu"]
    return ["benchmark", *where, "--backbone", "embedded", "--set", *SETTINGS, *more]


def lines_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
