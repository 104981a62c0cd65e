"""The command ``skpbas evaluate``: a detector and labeled images in, metrics out."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skpbas._cli import console
from skpbas._cli.console import UsageError
from skpbas._cli.labeled import GOOD, Labeled, defective_images, in_layout, tested_folder
from skpbas._cli.paths import images_below, images_in

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
        console.check_output(arguments.json, "--json", inputs=[arguments.detector])
    images = _labeled(arguments)
    from skpbas._cli.inspecting import Inspector

    import_module("skpbas.metrics")  # needs more than an exported detector: said before any image is inspected
    inspector = Inspector.opened(arguments.detector, arguments.device)
    masks = _masks(inspector, images)  # before the images: a mask that cannot be used costs no time
    seen = Seen()
    inspections = inspector.inspect((image.path for image in images), with_regions=False)
    for image, inspection in zip(images, console.progress(inspections, "inspecting", len(images)), strict=True):
        if inspection.error is not None:
            console.note(f"unreadable: {inspection.error}")
        else:
            seen.add(image, inspection, masks)
    if not seen.images:
        console.note(f"skpbas evaluate: none of {len(images)} images could be read")
        return console.UNREADABLE
    figures = measured(seen) | {"n_unreadable": len(images) - len(seen.images)}
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
    for name in ("good", "defective", "masks"):
        if (folder := getattr(arguments, name)) is not None:
            images_in(folder, f"--{name} {folder}")
    good = [Labeled(path, GOOD) for path in images_below(arguments.good)]
    return good + defective_images(arguments.defective, "defective", arguments.masks)


def _in_layout(folder: Path) -> list[Labeled]:
    images = in_layout(folder) if folder.is_dir() else None
    if images is None:
        raise UsageError(
            f"{folder}: no folder test/good in it, as MVTec AD has one; or give --good FOLDER --defective FOLDER"
        )
    good = tested_folder(folder) / GOOD
    kinds = {image.kind for image in images}
    if GOOD not in kinds:
        raise UsageError(f"{good}: no image files in this folder or below it")
    if len(kinds) == 1:
        raise UsageError(f"{good.parent} has good images only: add a folder of defective ones beside {good}")
    return images


def _masks(inspector: Any, images: Sequence[Labeled]) -> dict[Path, NDArray[np.bool_] | None]:
    """Return the mask of each image that has one, at the size of anomaly maps."""
    from skpbas._inputs.decoding import image_shape
    from skpbas.errors import InvalidImageError

    paths, files = list[Path](), list[Path]()
    for image in images:
        if image.mask is not None:
            with contextlib.suppress(InvalidImageError):  # which is reported when it is inspected
                image_shape(image.path, str(image.path))
                paths.append(image.path)
                files.append(image.mask)
    if not paths:
        return {}
    from skpbas.masks import to_map_size

    geometry = SimpleNamespace(map_shape_=inspector.map_shape, resize=inspector.resize)
    return dict(zip(paths, to_map_size(files, paths, geometry), strict=True))


# Figures --------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What is kept of images that were inspected; anomaly maps only where pixels are measured."""

    images: list[Labeled] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    flagged: list[bool] = field(default_factory=list)
    masks: list[NDArray[np.bool_] | None] = field(default_factory=list)
    maps: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, image: Labeled, inspection: Any, masks: Mapping[Path, NDArray[np.bool_] | None]) -> None:
        """Keep what an inspection says of an image."""
        self.images.append(image)
        self.margins.append(inspection.margin)
        self.verdicts.append(inspection.verdict)
        self.flagged.append(inspection.label == -1)
        if masks and (image.kind == GOOD or image.path in masks):
            self.masks.append(masks.get(image.path))
            self.maps.append(inspection.anomaly_map)


def measured(seen: Seen) -> dict[str, Any]:
    """Return all figures, as JSON can hold them; those that the images do not define are None."""
    from skpbas.metrics import image_ap, image_auroc, miss_rate

    images = seen.images
    labels = np.array([1 if image.kind == GOOD else -1 for image in images])
    margins, verdicts = np.array(seen.margins), np.array(seen.verdicts)
    good, flagged = labels == 1, np.array(seen.flagged)
    both = len(set(labels.tolist())) == 2
    of_kind: dict[str, NDArray[np.bool_]] = {
        kind: np.array([image.kind == kind for image in images])
        for kind in dict.fromkeys(image.kind for image in images if image.kind != GOOD)
    }
    return {
        "n_good": int(good.sum()),
        "n_defective": int((~good).sum()),
        "image_auroc": image_auroc(labels, -margins) if both else None,
        "image_ap": image_ap(labels, -margins) if both else None,
        **_of_pixels(seen),
        "misses_at": {f"{rate:g}": miss_rate(labels, -margins, rate) if both else None for rate in RATES},
        "false_alarms": int((flagged & good).sum()),
        "misses": int((~flagged & ~good).sum()),
        "unsure_good": int(((verdicts == "unsure") & good).sum()),
        "unsure_defective": int(((verdicts == "unsure") & ~good).sum()),
        "misses_by_kind": {
            kind: {"misses": int((~flagged & of).sum()), "n": int(of.sum())} for kind, of in of_kind.items()
        },
    }


def _of_pixels(seen: Seen) -> dict[str, Any]:
    """Return the metrics of pixels over the good images and those with a mask."""
    n_good = sum(image.kind == GOOD for image in seen.images)
    n_masks = len(seen.masks) - n_good if seen.masks else 0
    if not n_masks:
        return {"n_masks": 0, **dict.fromkeys(("pixel_auroc", "pixel_ap", "pixel_pro"))}
    from skpbas.metrics import pixel_metrics

    return {"n_masks": n_masks, **pixel_metrics(seen.masks, seen.maps)}


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
