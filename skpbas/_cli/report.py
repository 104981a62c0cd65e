"""The command ``skpbas report``: a detector and a folder of images to one HTML file.

Heavy modules are imported inside functions, so that ``--help`` is fast.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from skpbas._cli import console, paths
from skpbas._cli.labeled import GOOD, in_layout, tested_folder

_EXAMPLES = """\
examples:
  skpbas report part.skpbas parts/today -o today.html
  skpbas report part.skpbas mvtec/bottle --title "Bottles, line 2"

Exit codes: 0 done, 2 wrong use, 3 some images could not be read, which the
report lists.
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the parser of this command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "report",
        help="inspect images and write an HTML report",
        description="Inspect the images of a folder and write what was found to one HTML file, which any browser opens "
        "without a connection.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its exit code."""
    console.check_output(arguments.output, "--output", inputs=[arguments.detector])
    images, labels, masks = images_in(arguments.folder)
    from skpbas._cli.inspecting import Inspector

    detector = Inspector.opened(arguments.detector, arguments.device).detector
    from skpbas.inspection import write_report

    summary = write_report(
        detector,
        images,
        arguments.output,
        labels=labels,
        masks=masks,
        title=arguments.title or f"Inspection of {Path(os.path.realpath(arguments.folder)).name}",
        unsure_rate=arguments.unsure_rate,
        picture_size=arguments.picture_size,
        verbose=int(console.at_terminal()),
    )
    for line in (*summary.sentences(), f"The report is {summary.path}."):
        console.echo(line)
    return console.UNREADABLE if summary.unreadable else console.DONE


def images_in(folder: Path) -> tuple[list[Path], list[int] | None, list[Path | None] | None]:
    """Return the images of a folder, their labels and their masks; None for what is not known.

    Raises
    ------
    UsageError
        There is no such folder, or no image in it; or what is known of its images is not clear.
    """
    labeled = in_layout(folder) if folder.is_dir() else None
    if not labeled or all(image.kind != GOOD for image in labeled):
        return paths.images_in(tested_folder(folder), str(folder)), None, None
    masks = [image.mask for image in labeled]
    labels = [1 if image.kind == GOOD else -1 for image in labeled]
    return [image.path for image in labeled], labels, masks if any(masks) else None
