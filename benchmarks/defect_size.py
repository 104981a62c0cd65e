r"""How small a defect is found: recall against the size of a defect, in pixels of the network's input.

    python benchmarks/defect_size.py --data ../shared/data --category bottle screw commutator generated-printed_board \
        --backbone embedded resnet18 --weights ../shared/weights/resnet18-imagenet1k_v1-to-layer3.pth

The detector with its defaults learns a category's training images. Of each good test image, one copy per size gets a
spot of that diameter or a scratch of twice that length and 1.5 pixels width, darker or brighter by 60 of 255 gray
levels, at a random place away from the edges, on the part or beside it. Printed is the share of copies that score as
more anomalous than all but 5 % of the good test images, and the share that ``predict`` flags. ``--draw`` draws the
former from all rows of the CSV.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from categories import Images, load_images
from measure import append_rows, read_rows, table
from numpy.typing import NDArray
from PIL import Image

from skpbas import PBASDetector
from skpbas.metrics import miss_rate

SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32)
CONTRAST = 60  # gray levels
SUPERSAMPLING = 4  # per side, so that edges are smooth
LARGEST = 60  # good test images per category

Picture = NDArray[np.uint8]


def with_defect(rng: np.random.Generator, image: Picture, size: float) -> Picture:
    """Return a copy of an image with a spot of this diameter or a scratch of twice this length, in pixels."""
    height, width = image.shape[:2]
    top, left = rng.uniform(0.15, 0.85, 2) * (height, width)
    rows, columns = (np.mgrid[: height * SUPERSAMPLING, : width * SUPERSAMPLING] + 0.5) / SUPERSAMPLING
    if rng.random() < 0.5:
        inside = np.hypot(rows - top, columns - left) <= size / 2
    else:
        angle = rng.uniform(0, np.pi)
        along = (rows - top) * np.sin(angle) + (columns - left) * np.cos(angle)
        across = (columns - left) * np.sin(angle) - (rows - top) * np.cos(angle)
        inside = (np.abs(along) <= size) & (np.abs(across) <= 0.75)
    coverage = inside.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING).mean((1, 3))[..., None]
    return np.clip(image + coverage * rng.choice([-CONTRAST, CONTRAST]), 0, 255).astype(np.uint8)


def at_size(image: Any, shape: tuple[int, int]) -> Picture:
    """Return an image, as an array or a path, at the size of the network's input."""
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else Image.open(image)
    return np.asarray(picture.convert("RGB").resize(shape[::-1], Image.Resampling.BILINEAR))


def run(images: Images, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """Fit on the training images; return the recall at each size."""
    detector = PBASDetector(**parameters).fit(images.train)
    chosen = [image for image, label in zip(images.test, images.labels, strict=True) if label == 1][:LARGEST]
    good = np.stack([at_size(image, detector.map_shape_) for image in chosen])
    of_good = detector.score_samples(good)
    rows = []
    for size in SIZES:
        rng = np.random.default_rng(100 * parameters["random_state"] + size)
        of_bad = detector.score_samples(np.stack([with_defect(rng, image, size) for image in good]))
        labels = np.repeat([1, -1], len(good))
        recall = 1 - miss_rate(labels, -np.concatenate([of_good, of_bad]), max_fpr=0.05)
        rows.append({"size": size, "recall_at_5": recall, "flagged": float((of_bad < detector.offset_).mean())})
    return [{**row, "false_alarms": float((of_good < detector.offset_).mean()), "n": len(good)} for row in rows]


def summary(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return a row for each category and backbone: the mean recall over the seeds at each size."""
    values: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        values[row["category"], row["backbone"]][int(row["size"])].append(float(row["recall_at_5"]))
    return [
        {"category": category, "backbone": backbone} | {f"{size} px": f"{mean(of[size]):.2f}" for size in sorted(of)}
        for (category, backbone), of in values.items()
    ]


def draw(rows: list[dict[str, str]], target: Path) -> None:
    """Draw recall at 5 % false alarms by size, with a panel per backbone and a line per category."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "skpbas"
    backbones, lines = list(dict.fromkeys(row["backbone"] for row in rows)), summary(rows)
    figure, axes = plt.subplots(
        1, len(backbones), figsize=(3.6 * len(backbones), 3.2), sharey=True, layout="constrained", squeeze=False
    )
    for axis, backbone in zip(axes[0], backbones, strict=True):
        for i, line in enumerate(line for line in lines if line["backbone"] == backbone):
            sizes = [size for size in SIZES if f"{size} px" in line]
            recall = [float(line[f"{size} px"]) for size in sizes]
            axis.plot(sizes, recall, marker="osD^"[i % 4], markersize=4, linewidth=1.2, label=line["category"])
        axis.set_xscale("log", base=2)
        axis.set_xticks(SIZES, [str(size) for size in SIZES])
        axis.minorticks_off()
        axis.set(title=backbone, ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("recall at 5 % false alarms")
    figure.supxlabel("size of the defect, in pixels of the network's input", fontsize="medium")
    axes[0, -1].legend(fontsize=8, loc="lower right")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Parse the command line, run what is missing, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of categories in MVTec AD's layout")
    parser.add_argument("--category", nargs="+", default=["bottle", "screw", "commutator", "generated-printed_board"])
    parser.add_argument("--backbone", nargs="+", default=["embedded"])
    parser.add_argument("--weights", default="imagenet", help='"imagenet", a state-dict file, or "none"')
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/defect_size.csv"))
    parser.add_argument("--draw", type=Path, help="SVG file to draw the curves in")
    options = parser.parse_args()

    weights = None if options.weights == "none" else options.weights
    done = {(row["category"], row["backbone"], row["seed"]) for row in read_rows(options.output)}
    for category in options.category:
        images = load_images(category, options.data)
        for backbone in options.backbone:
            for seed in options.seeds:
                if (category, backbone, str(seed)) in done:
                    continue
                rows = run(images, {"backbone": backbone, "weights": weights, "random_state": seed})
                key = {"category": category, "backbone": backbone, "seed": seed}
                append_rows(options.output, [key | row for row in rows])
    rows_read = read_rows(options.output)
    print(table(summary(rows_read)))
    if options.draw:
        draw(rows_read, options.draw)


if __name__ == "__main__":
    main()
