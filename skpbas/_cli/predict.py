"""The command ``skpbas predict``: images in, verdicts, tables and pictures out."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skpbas._cli import console
from skpbas._cli.console import UsageError
from skpbas._cli.paths import Named, NamedImages, check_apart

_EXAMPLES = """\
WHAT is any number of files, folders (with their subfolders), patterns such as
"parts/*.png" (in quotes or not), and - for a list of paths on standard input.

examples:
  skpbas predict part.skpbas photo.png
  skpbas predict part.skpbas parts/today --csv today.csv --maps today-maps
  skpbas predict part.skpbas "parts/**/*.png" --json - | jq .verdict
  find parts -mmin -5 -name "*.png" | skpbas predict part.skpbas -
  skpbas predict part.skpbas --watch camera/out --csv results.csv
  skpbas predict part.onnx parts/today --fail-on-anomaly

A margin below 0 is anomalous. "unsure" images are normal by the threshold, but
less common than 95 % of the normal ones: let a person look at them.

exit codes: 0 done, 1 anomalies found (only with --fail-on-anomaly), 2 wrong
use, 3 some images could not be read (all others are in the output)
"""
_NAME_WIDTH = 40  # of the table, where the names are not known before


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the parser of this command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "predict",
        help="tell good images from defective ones",
        description="Inspect images with a detector that skpbas fit or skpbas export wrote.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("detector", type=Path, metavar="DETECTOR", help="a file such as part.skpbas or part.onnx")
    parser.add_argument("what", nargs="*", metavar="WHAT", help="images: see below")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a table; - is standard output")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one JSON object per line; - as above")
    parser.add_argument(
        "--maps",
        type=Path,
        metavar="DIR",
        help="folder for a picture of each image, of its own size: the anomaly map over it, and the contours of its "
        "regions; equal colors mean equal values in all pictures of a detector",
    )
    parser.add_argument("--fail-on-anomaly", action="store_true", help="exit code 1 if an image is anomalous")
    parser.add_argument(
        "--min-area", type=int, default=1, metavar="PIXELS", help="smallest area of a region (default: %(default)s)"
    )
    parser.add_argument(
        "--unsure-rate",
        type=float,
        metavar="RATE",
        help='share of normal images that are not called "normal" (default: 0.05)',
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... or mps (default: %(default)s)")
    watch = parser.add_argument_group("hot folder")
    watch.add_argument(
        "--watch",
        type=Path,
        metavar="FOLDER",
        help="inspect the images of a folder, and then each one that appears in it, once it is complete; ends with "
        "Ctrl-C. Files of --csv and --json are continued",
    )
    watch.add_argument(
        "--interval", type=float, default=0.5, metavar="SECONDS", help="time between looks (default: %(default)s)"
    )
    watch.add_argument("--idle-seconds", type=float, metavar="SECONDS", help="end after this time without a new image")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its exit code."""
    images = _images(arguments)
    if arguments.maps is not None:
        console.made_folder(arguments.maps, "--maps")
    from skpbas._cli.inspecting import Inspector

    inspector = Inspector.opened(arguments.detector, arguments.device)
    with contextlib.ExitStack() as open_files:
        output = _Output(inspector, _writers(arguments, images, open_files), arguments.maps)
        named: list[Named] = []
        inspections = inspector.inspect(
            _remembering(_with_progress(images, arguments), named),
            min_area=arguments.min_area,
            unsure_rate=arguments.unsure_rate,
            with_pixels=arguments.maps is not None,
        )
        try:
            for inspection in inspections:
                output.take(inspection, named.pop(0))
        except KeyboardInterrupt:
            if arguments.watch is None:
                raise
        if n := getattr(images, "n_left_out", 0):
            console.note(f"{n} image{'s' * (n > 1)} in --maps {arguments.maps} left out")
        if arguments.watch is None and not output.counts:
            raise UsageError("no image to inspect: the list on standard input names none")
    console.note(output.summary())
    if output.n_undrawn:
        return console.WRONG_USE
    if output.counts["unreadable"]:
        return console.UNREADABLE
    if arguments.fail_on_anomaly and output.counts["anomalous"]:
        return console.ANOMALIES
    return console.DONE


def _images(arguments: argparse.Namespace) -> Any:
    """Return the images to inspect, and refuse arguments that do not go together."""
    if arguments.min_area < 1:
        raise UsageError(f"--min-area {arguments.min_area}: expected a number of pixels, 1 or more")
    if [str(path) for path in (arguments.csv, arguments.json)] == ["-", "-"]:
        raise UsageError("--csv - and --json - both write to standard output: give one of them a file")
    console.check_different({f"--{name}": getattr(arguments, name) for name in ("csv", "json", "maps")})
    watches = arguments.watch is not None
    if watches == bool(arguments.what):
        raise UsageError("give either images, such as a folder, or --watch FOLDER")
    images = _watched(arguments) if watches else NamedImages(arguments.what, maps=arguments.maps)
    inputs = [arguments.detector, *([] if watches else images.known)]
    for option in ("csv", "json"):
        if (path := getattr(arguments, option)) is not None and str(path) != "-":
            console.check_output(path, f"--{option}", inputs=inputs, append=watches)
    return images


def _watched(arguments: argparse.Namespace) -> Any:
    """Return the images of the hot folder."""
    idle = arguments.idle_seconds
    if not (arguments.interval > 0 and math.isfinite(arguments.interval)):
        raise UsageError(f"--interval {arguments.interval}: expected seconds, more than 0")
    if idle is not None and not (idle >= 0 and math.isfinite(idle)):
        raise UsageError(f"--idle-seconds {idle}: expected seconds, 0 or more")
    if arguments.maps is not None:
        maps, hot = (Path(os.path.realpath(folder)) for folder in (arguments.maps, arguments.watch))
        apart = not (maps.is_relative_to(hot) or hot.is_relative_to(maps))
        check_apart(f"--watch {arguments.watch}", arguments.maps, apart=apart)
    from skpbas._cli.watching import WatchedFolder

    return WatchedFolder(arguments.watch, arguments.interval, idle)


def _with_progress(images: Any, arguments: argparse.Namespace) -> Iterable[Named]:
    """Return the images; with a progress bar where no table is printed meanwhile."""
    quiet = (arguments.csv is None and arguments.json is None) or not isinstance(images, NamedImages)
    if quiet and console.at_terminal(sys.stdout):
        return images
    return console.progress(images, "inspecting", len(images) if getattr(images, "are_known", False) else None)


def _remembering(images: Iterable[Named], named: list[Named]) -> Iterator[Path]:
    for image in images:
        named.append(image)
        yield image.path


def _writers(arguments: argparse.Namespace, images: Any, open_files: contextlib.ExitStack) -> list[Any]:
    """Return what writes the results: to the files that were asked for, or else to the terminal."""
    from skpbas._cli.rows import check_header, csv_writer, json_writer, table_writer

    watches = arguments.watch is not None
    writers = []
    if (path := arguments.csv) is not None:
        starts = not (watches and path.is_file() and path.stat().st_size)
        if not starts:
            check_header(path, with_maps=arguments.maps is not None)
        file = open_files.enter_context(console.data_output(path, "--csv", append=watches))
        writers.append(csv_writer(file, with_maps=arguments.maps is not None, header=starts))
    if (path := arguments.json) is not None:
        writers.append(json_writer(open_files.enter_context(console.data_output(path, "--json", append=watches))))
    if not writers:
        known = isinstance(images, NamedImages) and images.are_known
        width = max((len(console.shown(path)) for path in images.known), default=4) if known else _NAME_WIDTH
        writers.append(table_writer(console.echo, width))
    return writers


@dataclass
class _Output:
    """Where inspections go, and how many there were of each verdict."""

    inspector: Any
    writers: list[Any]
    maps: Path | None
    counts: Counter[str] = field(default_factory=Counter)
    n_undrawn: int = 0

    def __post_init__(self) -> None:
        from skpbas._cli.drawing import PictureNames

        self._names = None if self.maps is None else PictureNames(self.maps)

    def take(self, inspection: Any, image: Named) -> None:
        """Write an inspection, and its picture."""
        picture = None
        if self._names is not None and inspection.error is None:
            picture = self._drawn(inspection, self._names(image.below))
        if inspection.error is not None:
            console.note(f"unreadable: {inspection.error}")
        for write in self.writers:
            write(inspection, picture)
        self.counts[inspection.verdict or "unreadable"] += 1

    def _drawn(self, inspection: Any, picture: Path) -> Path | None:
        """Draw the picture; where that fails, as on a full disk, the tables go on without it."""
        from skpbas._cli.drawing import as_shown, overlaid, save_picture
        from skpbas.errors import StorageError

        image = as_shown(inspection.pixels)
        at_input = self.inspector.at_input(inspection.anomaly_map, image.shape[:2])
        try:
            save_picture(overlaid(image, at_input, self.inspector.threshold, inspection.regions), picture)
        except StorageError as error:
            if not self.n_undrawn:
                console.note(f"no picture: {console.one_line(error)}")
            self.n_undrawn += 1
            return None
        return picture

    def summary(self) -> str:
        """Return one line of what was found."""
        parts = [f"{self.counts[name]} {name}" for name in ("normal", "unsure", "anomalous")]
        unreadable = f"; {n} could not be read" if (n := self.counts["unreadable"]) else ""
        undrawn = f"; {n} picture{'s' * (n > 1)} could not be written" if (n := self.n_undrawn) else ""
        total = self.counts.total()
        return f"{total} image{'' if total == 1 else 's'}: {', '.join(parts)}{unreadable}{undrawn}"
