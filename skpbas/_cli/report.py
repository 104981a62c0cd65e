"""The command ``skpbas report``: a detector and a folder of images to one HTML file.

Heavy modules are imported inside functions, so that ``--help`` is fast.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skpbas.errors import DatasetError

Echo = Callable[[str], object]

_DONE, _SOME_UNREADABLE = 0, 3


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of ``skpbas``."""
    parser = commands.add_parser(
        "report",
        help="inspect images and write an HTML report",
        description="Inspect the images of a folder and write what was found to one HTML file, which any browser opens "
        "without a connection.",
        epilog="Exit codes: 0 done, 2 wrong use, 3 some images could not be read, which the report lists.",
    )
    parser.add_argument(
        "detector", type=Path, metavar="DETECTOR", help="a file of save (.skpbas) or of an export (.onnx)"
    )
    parser.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="images; or a category in MVTec AD's layout, or its test folder: subfolders of which one is called good, "
        "which counts false alarms and misses",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="the report (default: %(default)s)",
    )
    parser.add_argument("--title", metavar="TEXT", help="heading of the report (default: the name of the folder)")
    parser.add_argument(
        "--unsure-rate",
        type=float,
        metavar="RATE",
        help="share of good images that are not called normal (default: 0.05)",
    )
    parser.add_argument(
        "--picture-size",
        type=int,
        default=640,
        metavar="PIXELS",
        help="longer side of the pictures (default: %(default)s)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... or mps (default: %(default)s)")


def run(arguments: argparse.Namespace, echo: Echo = print) -> int:
    """Write the report.

    Parameters
    ----------
    arguments : Namespace
        What the parser of :func:`add_parser` returned.
    echo : callable
        Called with each line of the output.

    Returns
    -------
    int
        Exit code: 0, or 3 if some images could not be read.

    Raises
    ------
    SkpbasError, ValueError, OSError
        An unusable detector, folder, option or place of the report.
    """
    images, labels, masks = images_in(arguments.folder)
    detector = _opened(arguments.detector, arguments.device)
    from skpbas.inspection import write_report

    summary = write_report(
        detector,
        images,
        arguments.output,
        labels=labels,
        masks=masks,
        title=arguments.title or f"Inspection of {arguments.folder.resolve().name}",
        unsure_rate=arguments.unsure_rate,
        picture_size=arguments.picture_size,
        verbose=int(sys.stderr.isatty()),
    )
    for line in (*summary.sentences(), f"The report is {summary.path}."):
        echo(line)
    return _SOME_UNREADABLE if summary.unreadable else _DONE


def _opened(path: Path, device: str) -> Any:
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; fit a detector and save it first")
    if path.suffix.lower() == ".onnx":
        from skpbas.runtime import OnnxDetector

        return OnnxDetector(path)
    from skpbas import load

    return load(path, device=device)


def images_in(folder: Path) -> tuple[list[Path], list[int] | None, list[Path | None] | None]:
    """Return the images of a folder, their labels and their masks; None for what is not known.

    Raises
    ------
    DatasetError
        There is no such folder, or no image in it.
    """
    from skpbas.datasets import list_images, load_mvtec

    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    if (folder / "test").is_dir():
        if (folder / "ground_truth").is_dir():
            whole = folder.resolve()
            data = load_mvtec(whole.parent, whole.name, "test")
            return data.images, data.labels.tolist(), data.masks
        folder = folder / "test"
    parts = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    images, labels = [], []
    for part in parts:
        try:
            found = list_images(part)
        except DatasetError:  # a folder without images, such as one of notes
            continue
        images += found
        labels += [1 if part.name == "good" else -1] * len(found)
    if "good" in {path.parent.name for path in images}:
        return images, labels, None
    try:
        images = [*list_images(folder), *images]
    except DatasetError:
        if not images:
            raise
    return images, None, None
