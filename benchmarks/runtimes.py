"""Compare what computes an exported detector: agreement, time, memory, start and size of files.

    python benchmarks/runtimes.py agreement --data DATA --weights resnet18.pth
    python benchmarks/runtimes.py speed --weights resnet18.pth
    python benchmarks/runtimes.py tiles --threads 2 --rounds 3

"agreement" fits a detector with the default parameters for each category and backbone, exports it, and compares the
test images' scores with those of the detector in float32: the largest relative difference, Spearman's rank correlation,
labels that differ, image AUROC and PRO.

"speed" needs no data, because times do not depend on the values of weights: it fits on generated images for two epochs.
Times are from pixels to results with score, label and anomaly map, for one image and for eight in one call, per image,
all in one run, in turn; "ratio" is to the bare backbone, eager torch in float32, of torchvision or, for "embedded", the
network as the package makes it. Start and memory are those of a new process, up to its first result and beyond what it
holds after opening the file.

"tiles" is the time of one large plate, inspected by the embedded network in tiles of 256 pixels, all in one run, in
turn; "ratio" is to the package with torch.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from categories import load_images, masks_at_map_size
from measure import PeakMemory, in_child, in_turn, report
from scipy.stats import spearmanr

import skpbas
from skpbas import PBASDetector
from skpbas.core.backbones import build_backbone
from skpbas.datasets import make_inspection_images
from skpbas.export import to_onnx
from skpbas.metrics import image_auroc, pixel_pro
from skpbas.runtime import OnnxDetector

BACKBONES = ("embedded", "resnet18", "wide_resnet50_2")
RUNTIMES = {
    "ONNX Runtime": {"provider": "onnxruntime"},
    "OpenVINO": {"provider": "openvino"},
    "OpenVINO, bfloat16": {"provider": "openvino", "precision": "bfloat16"},
}
TORCH = {"torch, float32": torch.float32, "torch": None}


def openers(folder: Path, n_threads: int) -> dict[str, Callable[[], Any]]:
    """Return by name what opens a detector from the files in a folder."""
    return {
        **{name: lambda dtype=dtype: opened_torch(folder, dtype) for name, dtype in TORCH.items()},
        **{
            name: lambda options=options: OnnxDetector(folder / "part.onnx", n_threads=n_threads, **options)
            for name, options in RUNTIMES.items()
        },
    }


def opened_torch(folder: Path, dtype: torch.dtype | None) -> PBASDetector:
    """Return the saved detector, with all products in a type."""
    detector = skpbas.load(folder / "part.skpbas", device="cpu")
    if dtype is not None:
        detector.model_.patch_scorer.precision = dtype
    return detector


def stream_of(detector: Any) -> Callable[..., Any]:
    """Return the method that yields results."""
    return detector.score_stream if isinstance(detector, PBASDetector) else detector.iter_results


def written(detector: PBASDetector, folder: Path) -> None:
    """Write a detector for all runtimes."""
    detector.save(folder / "part.skpbas", include_backbone=True)
    to_onnx(detector, folder / "part.onnx")


# Agreement ------------------------------------------------------------------------------------------------


def agreement(backbone: str, category: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of one backbone and category."""
    images = load_images(category, options.data)
    detector = PBASDetector(backbone, weights=options.weights, random_state=options.seed, device="cpu")
    detector.fit(list(images.train))
    test, labels, masks = (list(of)[:: options.every] for of in (images.test, images.labels, images.masks))
    exact = copy.deepcopy(detector)
    exact.model_.patch_scorer.precision = torch.float32
    with tempfile.TemporaryDirectory() as name:
        written(exact, Path(name))
        detectors = {one: opener() for one, opener in openers(Path(name), options.threads).items()}
    seen = masks_at_map_size(masks, test, detector.map_shape_, detector.resize)
    rows, expected = [], None
    for one, opened in detectors.items():
        results = list(stream_of(opened)(test))
        scores = np.array([result.score for result in results])
        flagged = np.array([result.label for result in results])
        if expected is None:
            expected, of_exact = scores, flagged
        rows.append(
            {
                "category": category,
                "backbone": backbone,
                "computed by": one,
                "difference": f"{np.abs(scores / expected - 1).max():.1e}",
                "rank correlation": f"{spearmanr(scores, expected)[0]:.5f}",
                "other labels": int((flagged != of_exact).sum()),
                "image AUROC": f"{image_auroc(labels, -scores):.4f}",
                "PRO": f"{pixel_pro(seen, np.stack([result.map for result in results])):.4f}",
            }
        )
    return rows


# Speed ----------------------------------------------------------------------------------------------------


def bare_network(backbone: str) -> torch.nn.Module:
    """Return what a backbone computes up to its last level, as plain modules."""
    if backbone == "embedded":
        generator = torch.Generator().manual_seed(0)
        return build_backbone("embedded", None, ["layer2", "layer3"], generator).eval()
    whole = getattr(torchvision.models, backbone)(weights=None).eval()
    names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
    return torch.nn.Sequential(*(getattr(whole, name) for name in names))


def first_result(folder: str, name: str, n_threads: int, pixels: Any) -> tuple[float, float]:
    """Return in a new process the seconds from opening a file to a result, and the MiB that the result took."""
    torch.set_num_threads(n_threads)
    start = time.perf_counter()
    detector = openers(Path(folder), n_threads)[name]()
    with PeakMemory() as memory:
        list(stream_of(detector)([pixels]))
    return time.perf_counter() - start, memory.bytes / 2**20


def speed(backbone: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of one backbone."""
    made = make_inspection_images(12, 0, kind="hex_nut", size=options.size, random_state=0).images
    weights = options.weights if backbone == "resnet18" else None
    fresh = PBASDetector(backbone, weights=weights, max_epochs=2, random_state=0, device="cpu")
    pixels = list(np.random.default_rng(0).permutation(made))[:8]
    with tempfile.TemporaryDirectory() as folder:
        written(fresh.fit(made), Path(folder))
        detectors = {name: opener() for name, opener in openers(Path(folder), options.threads).items()}
        size = (Path(folder) / "part.onnx").stat().st_size / 2**20
        started = {name: in_child(first_result, folder, name, options.threads, pixels[0]) for name in detectors}
    network, shape = bare_network(backbone), fresh.map_shape_
    rows = []
    with torch.inference_mode():
        for n in (1, 8):
            views = torch.rand(n, 3, *shape)
            jobs: dict[str, Callable[[], Any]] = {"bare backbone": lambda views=views: network(views)}
            for name, detector in detectors.items():
                jobs[name] = lambda detector=detector, n=n: list(stream_of(detector)(pixels[:n]))
            seconds = in_turn(jobs, options.rounds, pause=0.1)  # runtimes wait actively for more work
            for name, taken in seconds.items():
                of_file = name in RUNTIMES
                rows.append(
                    {
                        "backbone": backbone,
                        "images": n,
                        "computed by": name,
                        "ms per image": f"{1000 * taken / n:.1f}",
                        "ratio": f"{taken / seconds['bare backbone']:.2f}",
                        "start, s": f"{started[name][0]:.1f}" if name in started else "",
                        "memory, MiB": f"{started[name][1]:.0f}" if name in started else "",
                        "file, MiB": f"{size:.1f}" if of_file else "",
                    }
                )
    return rows


def tiles(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of one plate in tiles."""
    size = tuple(options.plate)
    plates = list(make_inspection_images(3, 0, kind="brushed_metal", size=size, random_state=0).images)
    fresh = PBASDetector("embedded", tile=256, image_size=256, max_epochs=1, random_state=0, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        written(fresh.fit(plates[:2]), Path(folder))
        detectors = {name: opener() for name, opener in openers(Path(folder), options.threads).items()}
    jobs = {
        name: lambda detector=detector: list(stream_of(detector)(plates[2:])) for name, detector in detectors.items()
    }
    seconds = in_turn(jobs, options.rounds, pause=0.1)
    return [
        {"computed by": name, "s per plate": f"{taken:.2f}", "ratio": f"{taken / seconds['torch']:.2f}"}
        for name, taken in seconds.items()
    ]


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["agreement", "speed", "tiles"])
    parser.add_argument("--data", type=Path, help="folder of categories in MVTec AD's layout")
    parser.add_argument("--category", nargs="+", default=["bottle", "screw"])
    parser.add_argument("--backbone", nargs="+", choices=BACKBONES)
    parser.add_argument("--weights", default="imagenet", help="of resnet18: a state dict")
    parser.add_argument("--size", type=int, default=256, help="side of generated images")
    parser.add_argument("--plate", type=int, nargs=2, default=[3000, 4000], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--every", type=int, default=1, help="take every so manyth test image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "agreement":
        backbones = options.backbone or BACKBONES[:2]  # of the third there are no weights without a connection
        rows = [row for c in options.category for b in backbones for row in agreement(b, c, options)]
    elif options.what == "tiles":
        rows = tiles(options)
    else:
        rows = [row for backbone in options.backbone or BACKBONES for row in speed(backbone, options)]
    report(f"runtimes_{options.what}", rows, options.output)


if __name__ == "__main__":
    main()
