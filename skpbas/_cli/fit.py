"""The command ``skpbas fit``: a folder of good images in, a detector and its readiness card out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from skpbas._cli import console
from skpbas._cli.console import UsageError
from skpbas._cli.labeled import good_images
from skpbas._cli.options import OWN_DEFAULTS, add_parameters, parameters_of
from skpbas._cli.paths import readable

_EXAMPLES = """\
The readiness card says what to expect: which images were left out, false
alarms, and which generated defects are found. Read it before the detector
inspects parts.

examples:
  skpbas fit parts/good -o part.skpbas
  skpbas fit parts/good -o part.skpbas --holdout parts/more-good
  skpbas fit parts/good -o part.skpbas --image-size 384
  skpbas fit boards/good -o board.skpbas --tile 512
  skpbas fit parts/good -o part.skpbas --backbone resnet18 --weights r18.pth
  skpbas fit parts/good -o part.skpbas --false-alarm-rate 0.05 --random-state 0

exit codes: 0 done, 2 wrong use, 3 done, but some images could not be read
"""
_NETWORK_STRIDE = 16  # of the default layers: smaller images show it nothing


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the parser of this command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "fit",
        help="learn what good images look like",
        description="Learn what images of good parts look like, write the detector, and print its readiness card.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s FOLDER -o FILE [options]",
    )
    parser.later = add_parameters  # type: ignore[attr-defined]
    parser.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="images of good parts, in it and in its subfolders; or a folder with train/good, of which only that is "
        "used",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="detector to write, such as part.skpbas"
    )
    parser.add_argument(
        "--holdout",
        type=Path,
        metavar="FOLDER",
        help="other good images, which are not learned: the readiness card is measured on them",
    )
    parser.add_argument("--no-card", action="store_true", help="do not measure and print the readiness card")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its exit code."""
    console.check_output(arguments.output, "--output", text=False)
    if arguments.output.exists() and not arguments.output.is_file():
        raise UsageError(f"--output {arguments.output} is no regular file: give another name")
    if arguments.output.suffix.lower() == ".onnx":
        raise UsageError(f"--output {arguments.output}: fit writes a .skpbas file; skpbas export makes ONNX of it")
    folder = _training_folder(arguments.folder)
    holdout = [] if arguments.holdout is None else good_images(arguments.holdout, "--holdout ")
    parameters = OWN_DEFAULTS | parameters_of(arguments)
    smallest = 1 if "layers" in parameters else _NETWORK_STRIDE
    good, bad = readable(good_images(folder), smallest)
    holdout, bad_ones = readable(holdout, smallest)
    if len(good) < 2:
        raise UsageError(f"{folder}: {len(good)} usable image{'s' * (len(good) != 1)}, and fit needs at least 2")
    console.echo(f"learning from {len(good)} images of the folder {folder}, with the backbone {parameters['backbone']}")

    from skpbas import PBASDetector

    detector = PBASDetector(**parameters, verbose=int(console.at_terminal()))
    detector.fit(good)
    detector.save(arguments.output)
    console.echo(f"wrote {arguments.output} ({arguments.output.stat().st_size / 1e6:.1f} MB)")
    if not arguments.no_card:
        from skpbas._cli.readiness import readiness_card

        for line in readiness_card(detector, arguments.output, good, holdout, n_unreadable=len(bad)):
            console.echo(line)
    return console.UNREADABLE if bad or bad_ones else console.DONE


def _training_folder(folder: Path) -> Path:
    """Return the folder of good images; of a data set, that of the good training images."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    if (folder / "train" / "good").is_dir():
        return folder / "train" / "good"
    if mixed := [name for name in ("test", "ground_truth") if (folder / name).is_dir()]:
        raise UsageError(
            f"{folder} has a folder {mixed[0]!r}, as a data set has whose images are not all good: give the folder of "
            "its good images"
        )
    return folder
