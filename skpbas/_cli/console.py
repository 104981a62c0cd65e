"""What all commands share: lines on the terminal, warnings, progress, errors and exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar
from uuid import uuid4

DONE, ANOMALIES, WRONG_USE, UNREADABLE = 0, 1, 2, 3
INTERRUPTED, BROKEN_PIPE = 130, 141
"""Exit codes: the last two are those of a program that a signal ended."""

_OUR_WARNINGS = (UserWarning, RuntimeWarning)

_POSITION = re.compile(r"\b(?:X|images|masks)\[\d+\] \(([^()]+)\)")

T = TypeVar("T")


class UsageError(ValueError):
    """Arguments that do not go together, or that name nothing."""


def echo(line: str = "") -> None:
    """Print a line to standard output, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def note(line: str) -> None:
    """Print a line to standard error."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def one_line(text: object) -> str:
    """Return a text with all its white space as single blanks, and files without their positions in a sequence."""
    return _POSITION.sub(r"\1", " ".join(str(text).split()))


def aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Return lines of a name and a value each, indented, with the values below each other."""
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:{width}}  {value}" for name, value in rows]


# Running --------------------------------------------------------------------------------------------------


def run_safely(command: str, run: Callable[[], int], *, with_traceback: bool = False) -> int:
    """Run a command and return its exit code; an error is one line on standard error.

    Parameters
    ----------
    command : str
        Its name.
    run : callable
        Returns the exit code.
    with_traceback : bool
        Print the traceback of an error, too.
    """
    _print_any_character()
    try:
        with warnings_as_lines():
            code = run()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        note(f"skpbas {command}: interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # what is left would fail at the end of Python
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - whatever it is, the user of a command gets one line
        if with_traceback:
            traceback.print_exc()
        expected = isinstance(error, (ValueError, OSError, ImportError, TypeError)) or type(
            error
        ).__module__.startswith("skpbas.")
        kind = "" if expected else f"{type(error).__name__}: "
        note(f"skpbas {command}: error: {kind}{one_line(error) or type(error).__name__}")
        return WRONG_USE


def _print_any_character() -> None:
    """Print what the terminal's encoding does not have as an escape, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print each warning as one line on standard error, and none twice."""
    printed: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = one_line(message)
        if text not in printed:
            printed.add(text)
            note(f"warning: {text}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for category in _OUR_WARNINGS:
            warnings.simplefilter("always", category)
        warnings.showwarning = show
        yield


def at_terminal(stream: TextIO | None = None) -> bool:
    """Return whether a stream, by default standard error, is a terminal."""
    stream = sys.stderr if stream is None else stream
    return bool(getattr(stream, "isatty", lambda: False)())


def progress(items: Iterable[T], description: str, total: int | None = None, unit: str = "image") -> Iterator[T]:
    """Yield the items, with a progress bar on standard error if that is a terminal."""
    try:
        from tqdm import tqdm
    except ImportError:  # where only a runtime of ONNX is installed
        yield from items
        return
    yield from tqdm(
        items,
        description,
        total,
        unit=unit,
        leave=False,
        dynamic_ncols=True,
        disable=not at_terminal(),
        file=sys.stderr,
    )


# Files ----------------------------------------------------------------------------------------------------


def check_output(path: Path, option: str) -> None:
    """Refuse a file to write whose folder does not exist, before any work is done for it."""
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder: give the name of a file")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {parent}; create it first")
    if not os.access(parent, os.W_OK):
        raise UsageError(f"{option} {path}: the folder {parent} cannot be written")


def made_folder(path: Path, option: str) -> Path:
    """Return a folder, created if it is missing."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot create the folder ({error})") from error
    return path


@contextlib.contextmanager
def data_output(path: Path, option: str, *, append: bool = False) -> Iterator[TextIO]:
    """Open a file for text in UTF-8 that takes its name when it is complete; "-" is standard output.

    Parameters
    ----------
    path : Path
    option : str
        As the user gave it, for errors.
    append : bool
        Write to the file itself, behind what it holds: for output without an end.
    """
    if str(path) == "-":
        if hasattr(sys.stdout, "reconfigure") and not at_terminal(sys.stdout):
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
        yield sys.stdout
        return
    check_output(path, option)
    text: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    if append or (path.exists() and not path.is_file()):  # a device or a pipe is not replaced
        with path.open("a" if append else "w", **text) as file:
            yield file
        return
    target = Path(os.path.realpath(path))  # a link stays one
    unfinished = target.with_name(f".{uuid4().hex}.part")
    try:
        with unfinished.open("x", **text) as file:
            yield file
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, content: Any, option: str = "--json") -> None:
    """Write one JSON object, to a file or, with "-", to standard output."""
    with data_output(path, option) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
