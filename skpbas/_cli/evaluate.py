"""The command ``skpbas evaluate``: a detector and labeled images in, metrics out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skpbas._cli import console
from skpbas._cli.console import UsageError
from skpbas._cli.paths import images_below

_EXAMPLES = """\
FOLDER has the layout of MVTec AD: test/good, a folder test/<defect> for each
kind of defect and, if there are masks, ground_truth/<defect>/<name>_mask.png.
Or give one folder of good images and one of defective ones.

examples:
  skpbas evaluate part.skpbas mvtec/bottle
  skpbas evaluate part.skpbas mvtec/bottle --json bottle.json
  skpbas evaluate part.skpbas --good parts/ok --defective parts/scrap
  skpbas evaluate part.skpbas --good ok --defective scrap --masks scrap-masks

Pixel metrics need masks, and count images that have one, and the good ones.
Do not choose settings by what this prints: the same images would then not tell
how the detector does on others.

exit codes: 0 done, 2 wrong use, 3 some images could not be read
"""
RATES = (0.01, 0.02, 0.05)
"""False alarm rates at which misses are counted."""

_MASK_ENDS = ("_mask", "")


@dataclass(frozen=True)
class Labeled:
    """An image and what is known of it.

    Attributes
    ----------
    path : Path
    kind : str
        "good", or its kind of defect.
    mask : Path or None
    """

    path: Path
    kind: str
    mask: Path | None = None


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the parser of this command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "evaluate",
        help="measure a detector on good and defective images",
        description="Measure a detector on images that are known to be good or defective.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("detector", type=Path, metavar="DETECTOR", help="a file such as part.skpbas or part.onnx")
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help="images in the layout of MVTec AD")
    parser.add_argument("--good", type=Path, metavar="FOLDER", help="good images, which were not in fit")
    parser.add_argument("--defective", type=Path, metavar="FOLDER", help="defective images")
    parser.add_argument(
        "--masks", type=Path, metavar="FOLDER", help="masks of --defective, named as the images, or <name>_mask"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON; - is standard output")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... or mps (default: %(default)s)")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its exit code."""
    if arguments.json is not None and str(arguments.json) != "-":
        console.check_output(arguments.json, "--json")
    images = _labeled(arguments)
    from skpbas._cli.inspecting import Inspector

    inspector = Inspector.opened(arguments.detector, arguments.device)
    inspections = inspector.inspect(image.path for image in images)
    seen, kept = [], []
    for image, inspection in zip(images, console.progress(inspections, "inspecting", len(images)), strict=True):
        if inspection.error is None:
            seen.append(inspection)
            kept.append(image)
        else:
            console.note(f"unreadable: {inspection.error}")
    if not seen:
        raise UsageError("no image could be read")
    figures = measured(inspector, kept, seen) | {"n_unreadable": len(images) - len(kept)}
    if str(arguments.json) != "-":
        for line in _report(figures):
            console.echo(line)
    if arguments.json is not None:
        console.write_json(arguments.json, {"detector": str(arguments.detector)} | figures)
    return console.UNREADABLE if figures["n_unreadable"] else console.DONE


# Images ---------------------------------------------------------------------------------------------------


def _labeled(arguments: argparse.Namespace) -> list[Labeled]:
    """Return the images that the arguments name, good ones first."""
    two = arguments.good, arguments.defective
    if arguments.folder is not None:
        if any(folder is not None for folder in (*two, arguments.masks)):
            raise UsageError("give either FOLDER, or --good and --defective, not both")
        return _in_layout(arguments.folder)
    if None in two:
        raise UsageError("give FOLDER in the layout of MVTec AD, or both --good and --defective")
    masks = None if arguments.masks is None else _masks_in(arguments.masks, "--masks ")
    good = [Labeled(path, "good") for path in _images_in(arguments.good, "--good ")]
    defective = _images_in(arguments.defective, "--defective ")
    return good + [Labeled(path, "defective", _mask_of(path, masks or {})) for path in defective]


def _in_layout(folder: Path) -> list[Labeled]:
    test = folder / "test" if (folder / "test").is_dir() else folder
    if not (test / "good").is_dir():
        raise UsageError(
            f"{folder}: no folder test/good in it, as MVTec AD has one; or give --good FOLDER --defective FOLDER"
        )
    images = [Labeled(path, "good") for path in _images_in(test / "good")]
    for kind in sorted(path for path in test.iterdir() if path.is_dir() and path.name not in ("good", "ground_truth")):
        folder_of_masks = test.parent / "ground_truth" / kind.name
        masks = _masks_in(folder_of_masks) if folder_of_masks.is_dir() else {}
        images += [Labeled(path, kind.name, _mask_of(path, masks)) for path in images_below(kind)]
    if all(image.kind == "good" for image in images):
        raise UsageError(f"{test} has good images only: add a folder of defective ones beside {test / 'good'}")
    return images


def _images_in(folder: Path, option: str = "") -> list[Path]:
    images = images_below(folder) if folder.is_dir() else []
    if not images:
        raise UsageError(f"{option}{folder}: no image files in this folder or below it")
    return images


def _masks_in(folder: Path, option: str = "") -> dict[str, Path]:
    return {path.stem: path for path in _images_in(folder, option)}


def _mask_of(image: Path, masks: dict[str, Path]) -> Path | None:
    return next((masks[image.stem + end] for end in _MASK_ENDS if image.stem + end in masks), None)


# Figures --------------------------------------------------------------------------------------------------


def measured(inspector: Any, images: Sequence[Labeled], inspections: Sequence[Any]) -> dict[str, Any]:
    """Return all figures, as JSON can hold them; those that the images do not define are None."""
    from skpbas.metrics import image_ap, image_auroc, miss_rate

    labels = np.array([1 if image.kind == "good" else -1 for image in images])
    margins = np.array([inspection.margin for inspection in inspections])
    verdicts = np.array([inspection.verdict for inspection in inspections])
    good, flagged = labels == 1, np.array([inspection.label == -1 for inspection in inspections])
    both = len(set(labels.tolist())) == 2
    of_kind: dict[str, NDArray[np.bool_]] = {
        kind: np.array([image.kind == kind for image in images])
        for kind in dict.fromkeys(image.kind for image in images if image.kind != "good")
    }
    return {
        "n_good": int(good.sum()),
        "n_defective": int((~good).sum()),
        "image_auroc": image_auroc(labels, -margins) if both else None,
        "image_ap": image_ap(labels, -margins) if both else None,
        **_of_pixels(inspector, images, inspections),
        "misses_at": {f"{rate:g}": miss_rate(labels, -margins, rate) if both else None for rate in RATES},
        "false_alarms": int((flagged & good).sum()),
        "misses": int((~flagged & ~good).sum()),
        "unsure_good": int(((verdicts == "unsure") & good).sum()),
        "unsure_defective": int(((verdicts == "unsure") & ~good).sum()),
        "misses_by_kind": {
            kind: {"misses": int((~flagged & of).sum()), "n": int(of.sum())} for kind, of in of_kind.items()
        },
    }


def _of_pixels(inspector: Any, images: Sequence[Labeled], inspections: Sequence[Any]) -> dict[str, Any]:
    """Return the metrics of pixels over the good images and those with a mask."""
    names = ("pixel_auroc", "pixel_ap", "pixel_pro")
    of_defective = [image.mask is not None for image in images if image.kind != "good"]
    if not any(of_defective):
        return {"n_masks": 0, **dict.fromkeys(names)}
    from skpbas.masks import to_map_size
    from skpbas.metrics import pixel_metrics

    used = [i for i, image in enumerate(images) if image.kind == "good" or image.mask is not None]
    geometry = SimpleNamespace(map_shape_=inspector.map_shape, resize=inspector.resize)
    masks = to_map_size([images[i].mask for i in used], [images[i].path for i in used], geometry)
    return {"n_masks": sum(of_defective), **pixel_metrics(masks, [inspections[i].anomaly_map for i in used])}


def _report(figures: dict[str, Any]) -> list[str]:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    n_good, n_bad, n_masks = figures["n_good"], figures["n_defective"], figures["n_masks"]
    without = "no masks" if not n_masks else f"{n_masks} of {n_bad} defective images have a mask"
    rows = [
        ("image AUROC", shown(figures["image_auroc"])),
        ("image AP", shown(figures["image_ap"])),
        ("pixel AUROC", shown(figures["pixel_auroc"])),
        ("pixel AP", shown(figures["pixel_ap"])),
        ("PRO (to FPR 0.3)", shown(figures["pixel_pro"])),
    ]
    misses = []
    for rate, share in figures["misses_at"].items():
        allowed = int(float(rate) * n_good + 1e-9)
        value = "-" if share is None else f"{share:.1%}"
        misses.append((f"at {float(rate):.0%} false alarms", f"{value}  (at most {allowed} of {n_good} flagged)"))
    counts = [
        ("false alarms", f"{figures['false_alarms']} of {n_good} good images"),
        ("misses", f"{figures['misses']} of {n_bad} defective images"),
        ("unsure", f"{figures['unsure_good']} good and {figures['unsure_defective']} of the missed defective images"),
    ]
    kinds = [(kind, f"{of['misses']} of {of['n']}") for kind, of in figures["misses_by_kind"].items()]
    return [
        f"{n_good} good and {n_bad} defective images" + ("" if n_masks == n_bad else f"; {without}"),
        *console.aligned(rows),
        "misses:",
        *console.aligned(misses),
        "at the detector's threshold:",
        *console.aligned(counts),
        *(["misses by kind:", *console.aligned(kinds)] if len(kinds) > 1 else []),
    ]
