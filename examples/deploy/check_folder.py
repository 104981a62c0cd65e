"""Check the images of a folder: one row of a CSV file for each.

    python check_folder.py part.onnx images --csv verdicts.csv
    python check_folder.py part.onnx images --csv verdicts.csv --copy bad

Images of all subfolders are checked. Hidden files and folders, links to
folders, other files and the folder of the copies are left out; their number is
printed. Paths in the table that a spreadsheet would take for a formula begin
with "./".

The exit status is 0 if no image is anomalous, 1 if some are, 3 if some have
no verdict because they cannot be read (whatever the others are), and 2 if
nothing was checked, such as without a detector or an image. It needs numpy,
Pillow, skpbas and ONNX Runtime or OpenVINO: no torch.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from skpbas import Result
from skpbas.errors import SkpbasError
from skpbas.runtime import OnnxDetector

SUFFIXES = (  # those of skpbas.datasets, which needs scikit-learn
    *(".bmp", ".gif", ".png", ".tif", ".tiff", ".webp"),
    *(".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"),
    *(".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx"),
    *(".pbm", ".pfm", ".pgm", ".pnm", ".ppm"),
)
COLUMNS = ("file", "label", "verdict", "score", "margin", "p_value", "error")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what one begins with
NONE_ANOMALOUS, SOME_ANOMALOUS, NOTHING_CHECKED, SOME_UNREADABLE = range(4)


def main(arguments: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(arguments)
    target = args.copy or args.move
    try:
        if target is not None:
            target.mkdir(parents=True, exist_ok=True)
            if target.samefile(args.folder):
                raise ValueError(f"{target} is the folder that is checked")
        paths = images_of(args.folder, target)
        check_table(args.csv)
        detector = OnnxDetector(args.detector, n_threads=args.threads)
        results = list(checked(detector, paths))
        write_table(args.csv, results, detector.offset_)
        if target is not None:
            for path, result in zip(paths, results, strict=True):
                if result.verdict == "anomalous":
                    put(path, target, move=args.move is not None)
    except (SkpbasError, ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return NOTHING_CHECKED
    counts = Counter(result.verdict or "unreadable" for result in results)
    print(", ".join(f"{counts[name]} {name}" for name in sorted(counts)))
    print(f"verdicts of {len(results)} images: {args.csv}")
    if counts["unreadable"]:
        return SOME_UNREADABLE
    return SOME_ANOMALOUS if counts["anomalous"] else NONE_ANOMALOUS


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Check a folder of images.")
    parser.add_argument("detector", type=Path, help="file of to_onnx")
    parser.add_argument("folder", type=Path, help="folder with images")
    parser.add_argument(
        "--csv", type=Path, default=Path("verdicts.csv"), help="file to write"
    )
    parser.add_argument(
        "--threads", type=int, help="of one computation; default: all cores"
    )
    sorting = parser.add_mutually_exclusive_group()
    for verb in ("copy", "move"):
        sorting.add_argument(
            f"--{verb}",
            type=Path,
            metavar="TARGET",
            help=f"{verb} anomalous images to this folder",
        )
    return parser


def images_of(folder: Path, target: Path | None) -> list[Path]:
    """Return the images of a folder; say how much else it has.

    ``target`` is a folder that is left out.
    """
    images, n_files, n_folders = [], 0, 0
    for parent, folders, files in os.walk(folder, onerror=reraise):
        paths = [Path(parent, name) for name in sorted(files)]
        images += [path for path in paths if is_image(path)]
        n_files += len(paths)
        inside = [name for name in folders if enters(Path(parent, name))]
        n_folders += len(folders) - len(inside)
        folders[:] = sorted(
            name
            for name in inside
            if target is None or not target.samefile(Path(parent, name))
        )
    counts = (
        (n_files - len(images), "other file", ""),
        (n_folders, "folder", " (hidden, or links)"),
    )
    left_out = [f"{n} {w}{'s' * (n > 1)}{why}" for n, w, why in counts if n]
    if left_out:
        print(f"left out: {', '.join(left_out)}", file=sys.stderr)
    if not images:
        raise ValueError(f"{folder} has no {', '.join(SUFFIXES)}")
    return sorted(images)


def reraise(error: OSError) -> None:
    raise error  # of a folder that cannot be read; os.walk would go on


def is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def enters(folder: Path) -> bool:
    return not folder.is_symlink() and not folder.name.startswith(".")


def check_table(path: Path) -> None:
    """Raise an error if a table cannot be written, before it is computed."""
    if path.suffix.lower() in (*SUFFIXES, ".onnx"):
        raise ValueError(f"{path} is no name for a table: end it in .csv")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file: choose another name for --csv")
    try:
        if path.exists():
            path.open("r+b").close()  # on Windows, spreadsheets lock it
        partial_of(path).touch()
        partial_of(path).unlink()
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> OSError:
    return OSError(f"{path} cannot be written: {error.strerror or error}")


def partial_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.unfinished")


def checked(detector: OnnxDetector, paths: Sequence[Path]) -> list[Result]:
    """Return the results of images; print those that are not normal."""
    results = []
    for result in detector.iter_results(paths, on_error="skip", maps=False):
        if result.error is not None:
            print(f"no verdict: {result.error}", file=sys.stderr)
        elif result.verdict != "normal":
            print(f"{result.verdict}: {result.name}")
        results.append(result)
    return results


def write_table(path: Path, results: Sequence[Result], offset: float) -> None:
    """Write a CSV file, which appears, or is replaced, once complete."""
    partial = partial_of(path)
    try:
        with partial.open(
            "w", newline="", encoding="utf-8", errors="backslashreplace"
        ) as file:
            rows = csv.writer(file)
            rows.writerow(COLUMNS)
            for result in results:
                rows.writerow(row_of(result, offset))
        os.replace(partial, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def row_of(result: Result, offset: float) -> list[object]:
    name = result.name
    if name.startswith(FORMULA):
        name = f"./{name}"  # the same file
    if result.score is None:
        return [name, "", "", "", "", "", result.error]
    margin = result.score - offset
    return [
        name,
        result.label,
        result.verdict,
        result.score,
        margin,
        result.p_value,
        "",
    ]


def put(path: Path, folder: Path, *, move: bool) -> None:
    """Copy or move a file to a folder, under a free name."""
    target, n = folder / path.name, 1
    while target.exists():
        n += 1
        target = folder / f"{path.stem} ({n}){path.suffix}"
    partial = partial_of(target)
    try:
        shutil.copy2(path, partial)  # the target may be another disk
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    if move:
        path.unlink()


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # any name of a file can be shown
        stream.reconfigure(errors="backslashreplace")
    sys.exit(main())
