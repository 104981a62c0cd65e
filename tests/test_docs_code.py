"""The code blocks in README and docs run on small images, all blocks of a page in order."""

from __future__ import annotations

import contextlib
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import sklearn
import torch
import torchvision
from check_docs_code import written_pages
from helpers import ROOT
from PIL import Image

from skpbas import PBASDetector
from skpbas._training.settings import n_epochs
from skpbas.core.backbones import factory
from skpbas.datasets import IMAGE_FORMATS, make_inspection_images

SIDE = 64


def python_blocks(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    blocks = re.findall(r"^( *)\.\. code-block:: python\n\n((?:\1   .*\n|\n)+)", text, flags=re.MULTILINE)
    return [inspect.cleandoc(block) for _, block in blocks]


def random_state_dict(name, **_):
    """The state dict that torchvision would download, with random values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torchvision.models.get_model(name, weights=None).state_dict()


@pytest.fixture(scope="module")
def parts():
    return make_inspection_images(12, 6, kind="fabric", size=SIDE, random_state=0)


@pytest.fixture
def folder(tmp_path, monkeypatch, parts):
    """A working directory with the files used on the pages."""

    def save(pixels, path):
        path = tmp_path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    for i, (image, label, mask) in enumerate(zip(parts.images, parts.labels, parts.masks, strict=True)):
        split = "train/good" if i < 8 else "test/good" if label == 1 else "test/cut"
        save(image, f"mvtec/bottle/{split}/{i}.png")
        if label == -1:
            save(255 * np.uint8(mask), f"mvtec/bottle/ground_truth/cut/{i}_mask.png")
        save(image, f"parts/{'good' if i < 8 else 'today'}/{i}.png")
    for name, model in (("resnet18-f37072fd", "resnet18"), ("wide_resnet50_2-95faca4d", "wide_resnet50_2")):
        torch.save(random_state_dict(model), tmp_path / f"{name}.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def names(folder, parts, monkeypatch):
    """What the pages take as given; training is short, and nothing is downloaded."""
    monkeypatch.setitem(n_epochs.__kwdefaults__, "sufficient_steps", 2)
    monkeypatch.setitem(n_epochs.__kwdefaults__, "sufficient_epochs", 1)
    monkeypatch.setattr(factory, "imagenet_state_dict", random_state_dict)
    monkeypatch.setitem(IMAGE_FORMATS, "TGA", (".tga",))  # a page adds it: it is removed afterward
    masks = [mask if mask.any() else None for mask in parts.masks]
    return {
        "__name__": "a page of the documentation",
        "PBASDetector": PBASDetector,
        "detector": PBASDetector("embedded", image_size=SIDE, max_epochs=1, device="cpu", random_state=0),
        "grid": {"alpha": [0.1, 0.3]},
        "good_images": parts.images[:8],
        "new_images": parts.images[8:],
        "new_good_images": parts.images[8:10],
        "other_good_images": parts.images[8:12],
        "images": parts.images,
        "paths": sorted(folder.glob("parts/*/*.png"), key=lambda path: int(path.stem)),
        "labels": parts.labels,
        "masks": masks,
    }


@contextlib.contextmanager
def cluster(needed: bool):
    if not needed:
        yield None
        return
    distributed = pytest.importorskip("distributed")
    with distributed.Client(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as client:
        yield client


PAGES = [page for page in (ROOT / "README.md", *written_pages(ROOT / "docs")) if python_blocks(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs(page, names):
    blocks = python_blocks(page)
    if "sklearn.callback" in "".join(blocks):
        pytest.importorskip("sklearn.callback", reason="callbacks need scikit-learn 1.9")
    if "skpbas.export" in "".join(blocks):
        for package in ("onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason="the extra onnx is not installed")
    with cluster("client" in "".join(blocks)) as client, sklearn.config_context():
        names["client"] = client
        for block in blocks:
            exec(compile(block, str(page), "exec"), names)


def test_the_guide_has_code():
    assert sum(len(python_blocks(page)) for page in PAGES) >= 20
