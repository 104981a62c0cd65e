"""What all commands share: lines on the terminal, warnings, progress, errors and exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar
from uuid import uuid4

from skpbas._inputs.formats import image_suffixes

DONE, ANOMALIES, WRONG_USE, UNREADABLE = 0, 1, 2, 3
INTERRUPTED, BROKEN_PIPE = 130, 141
"""Exit codes: the last two are those of a program that a signal ended."""

_OUR_WARNINGS = (UserWarning, RuntimeWarning)
_MOST_WARNINGS = 10_000  # that are remembered

_BREAK = re.compile(r"\s*[\t\n\v\f\r]\s*")  # other blanks may be part of the name of a file
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\udc80-\udcff]")
_FOR_PYTHON = "; pass a single image as X[None]"
_OF_FOLDER = re.compile(r" is a folder: list its images with skpbas\.datasets\.list_images\(.*\)")
_POSITION = re.compile(r"\b(?:X|images|masks)\[\d+\] \(([^()]+)\)")

_OF_PARAMETERS = (
    (re.compile(r"(?P<name>\w+)=(?P<value>'[^']*'|[^:']*): (?P<rest>.*)"), r"--\g<name> \g<value>: \g<rest>"),
    (
        re.compile(r"The '(?P<name>\w+)' parameter of \w+ must be (?P<rest>.*)\. Got (?P<value>.*) instead\.$"),
        r"--\g<name> \g<value>: expected \g<rest>",
    ),
)

_OF_RANGES = (
    (re.compile(r"an int in the range \[(\S+), inf\)"), r"a whole number from \1"),
    (re.compile(r"a float in the range \((\S+), inf\)"), r"a number above \1"),
    (re.compile(r"an int in the range "), "a whole number in "),
    (re.compile(r"a float in the range "), "a number in "),
    (re.compile(r"a str among \{([^{}]*)\}"), r"\1"),
    (re.compile(r"an array-like"), "two with an x between"),
)
"""scikit-learn's words for values, and those of people who do not program."""

_OF_FULL_INSTALLATION = ("torch", "torchvision", "sklearn", "scipy", "joblib", "skorch", "safetensors", "tqdm")

_DETECTORS = (".skpbas", ".onnx", ".pt2")

T = TypeVar("T")


class UsageError(ValueError):
    """Arguments that do not go together, or that name nothing."""


class Terminated(KeyboardInterrupt):
    """A signal that ends programs, as a service manager sends it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def echo(line: str = "") -> None:
    """Print a line to standard output, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def note(line: str) -> None:
    """Print a line to standard error."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def one_line(text: object) -> str:
    """Return a text on one line, with files without their positions in a sequence, and for those who have no X."""
    line = _POSITION.sub(r"\1", _BREAK.sub(" ", str(text).strip())).replace(_FOR_PYTHON, "")
    # folders are listed before, so this one, in a list of paths, was in vain
    return printable(_OF_FOLDER.sub(": no image files can be listed in this folder or below it", line))


def printable(text: str) -> str:
    """Return a text with control characters, and bytes that are no UTF-8, as escapes: a terminal would obey them."""
    return _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]) % 0xDC00:02x}", text)


def shown(path: object) -> str:
    """Return a path as people see it."""
    return printable(str(path))


def aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Return lines of a name and a value each, indented, with the values below each other."""
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:{width}}  {value}" for name, value in rows]


# Running --------------------------------------------------------------------------------------------------


def run_safely(
    command: str, run: Callable[[], int], *, with_traceback: bool = False, given: Collection[str] = ()
) -> int:
    """Run a command and return its exit code; an error is one line on standard error.

    Parameters
    ----------
    command : str
        Its name.
    run : callable
        Returns the exit code.
    with_traceback : bool
        Print the traceback of an error, too.
    given : collection of str
        Names of the arguments, which errors about parameters of these names are said in.
    """
    name = f"skpbas {command}".strip()
    _print_any_character()
    try:
        with ending_in_order(), warnings_as_lines():
            code = run()
        sys.stdout.flush()
        return code
    except Terminated as signaled:
        note(f"{name}: ended by signal {signaled.number}")
        return 128 + signaled.number
    except KeyboardInterrupt:
        note(f"{name}: interrupted")
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
        text = _full_installation(error) or in_options(one_line(error), given) or type(error).__name__
        note(f"{name}: error: {kind}{text}")
        return WRONG_USE


def in_options(text: str, given: Collection[str]) -> str:
    """Return an error about a parameter as one about the option of that name, if it was given."""
    for pattern, shown_as in _OF_PARAMETERS:
        if (found := pattern.match(text)) and found["name"] in given:
            text = found.expand(shown_as).replace(found["name"], found["name"].replace("_", "-"), 1)
            for words, plain in _OF_RANGES:
                text = words.sub(plain, text)
            return text
    return text


def _full_installation(error: Exception) -> str | None:
    """Return what to say where a package is missing that inspecting by an exported detector does not need."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package not in _OF_FULL_INSTALLATION:
        return None
    return f"this needs a full installation, and {package} is missing: pip install skpbas"


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Let signals that end programs raise :class:`Terminated`, so that nothing half-written stays behind."""
    before: dict[int, Any] = {}

    def end(number: int, _: object) -> None:
        for one in before:
            signal.signal(one, signal.SIG_IGN)  # a second one would end the cleaning up
        raise Terminated(number)

    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
        before |= {number: signal.SIG_DFL for number in numbers if signal.getsignal(number) == signal.SIG_DFL}
        for number in before:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_any_character() -> None:
    """Print what the terminal's encoding does not have as an escape, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print each warning as one line on standard error, and none that is among the last ones."""
    printed: dict[str, None] = {}

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = one_line(message)
        if text not in printed:
            note(f"warning: {text}")
        printed.pop(text, None)
        printed[text] = None
        if len(printed) > _MOST_WARNINGS:  # those of a hot folder name its images
            del printed[next(iter(printed))]

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


def check_output(
    path: Path, option: str, *, inputs: Iterable[Path] = (), append: bool = False, text: bool = True
) -> None:
    """Refuse a file to write, before any work is done for it, that cannot be written or must not be replaced.

    Parameters
    ----------
    path : Path
    option : str
        As the user gave it, for errors.
    inputs : iterable of Path
        What the command reads.
    append : bool
        Whether the file is continued.
    text : bool
        Whether it is no detector.
    """
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder: give the name of a file")
    suffix = path.suffix.lower()
    if suffix in image_suffixes() or (text and suffix in _DETECTORS):
        kind = "a detector" if suffix in _DETECTORS else "an image"
        raise UsageError(f"{option} {path} is the name of {kind}: give another name")
    if path.exists() and any(_is_same(path, one) for one in inputs):
        raise UsageError(f"{option} {path} is what this command reads, and would be lost: give another name")
    if path.exists() and (append or not path.is_file()):  # written in place
        if not os.access(path, os.W_OK):
            raise UsageError(f"{option} {path} cannot be written")
        return
    parent = (Path(os.path.realpath(path)) if path.is_symlink() else path.absolute()).parent
    if not parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {parent}; create it first")
    if not os.access(parent, os.W_OK):
        raise UsageError(f"{option} {path}: the folder {parent} cannot be written")


def check_different(outputs: Mapping[str, Path | None]) -> None:
    """Refuse one name for two outputs; keys are options. Devices may be named twice."""
    names: dict[str, str] = {}
    for option, path in outputs.items():
        if path is None or str(path) == "-" or (path.exists() and not path.is_file() and not path.is_dir()):
            continue
        other = names.setdefault(os.path.normcase(os.path.realpath(path)), option)
        if other != option:
            raise UsageError(f"{other} and {option} are both {path}: give two names")


def _is_same(path: Path, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):
        return False


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
    check_output(path, option, append=append)
    text: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    if append or (path.exists() and not path.is_file()):  # a device or a pipe is not replaced
        torn = append and _ends_amid_a_line(path)
        with path.open("a" if append else "w", **text) as file:
            file.write("\n" * torn)
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


def _ends_amid_a_line(path: Path) -> bool:
    """Return whether a file has a last line without an end, as a computer leaves it that was switched off."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def write_json(path: Path, content: Any, option: str = "--json") -> None:
    """Write one JSON object, to a file or, with "-", to standard output."""
    with data_output(path, option) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
