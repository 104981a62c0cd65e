"""Options that are the estimator's parameters, under the same names, made from its signature and documentation."""

from __future__ import annotations

import argparse
import copy
import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar

NOT_OPTIONS = ("verbose",)
"""Parameters that are no options: progress shows at a terminal."""

OWN_DEFAULTS = {"backbone": "embedded"}
"""Defaults of the command line that are not the estimator's."""

ALIASES = {"max_epochs": ("--epochs",)}

_ENTRY = re.compile(r"^(\w+(?:, \w+)*)(?: : (.*))?$")
_CHOICES = re.compile(r"\{(.*?)\}")

T = TypeVar("T")


class CommandParser(argparse.ArgumentParser):
    """The parser of a command; options may be written with underscores, as the estimator's parameters are."""

    _parses = False

    later: Callable[[argparse.ArgumentParser], None] | None = None
    """Adds options that need imports, when something is parsed or the help is printed."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments as argparse does."""
        self._complete()
        given = list(args or ())
        end = given.index("--") if "--" in given else len(given)  # behind it are names of files
        given[:end] = map(self._with_dashes, given[:end])
        found = super().parse_known_args(given, copy.copy(namespace))
        if not found[1] or self._parses or end < len(given):
            return found
        self._parses = True  # what is left stands behind options that stand behind the detector
        try:
            return self.parse_known_intermixed_args(given, namespace)
        finally:
            self._parses = False

    def format_help(self) -> str:
        """Return the help."""
        self._complete()
        return super().format_help()

    def _with_dashes(self, argument: str) -> str:
        """Return an option with dashes, and anything else as it is."""
        name, equals, value = argument.partition("=")
        dashed = name.replace("_", "-")
        known = name.startswith("--") and any(option.startswith(dashed) for option in self._option_string_actions)
        return dashed + equals + value if known else argument

    def _complete(self) -> None:
        later, self.later = self.later, None
        if later is not None:
            later(self)


def parameters_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the estimator's parameters that were given."""
    from skpbas import PBASDetector

    given = vars(arguments)
    return {name: given[name] for name in inspect.signature(PBASDetector).parameters if name in given}


def add_parameters(parser: argparse.ArgumentParser) -> None:
    """Add an option per parameter of the estimator."""
    from skpbas import PBASDetector

    documented = _documentation(inspect.getdoc(PBASDetector) or "")
    groups: dict[str, Any] = {}
    for name, parameter in inspect.signature(PBASDetector).parameters.items():
        if name in NOT_OPTIONS:
            continue
        heading, choices, text = documented.get(name, ("Parameters", "", ""))
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading.lower())
        default = OWN_DEFAULTS.get(name, parameter.default)
        in_python = f"; in Python: {_shown(parameter.default)}" if name in OWN_DEFAULTS else ""
        described = f"{text} (default: {_shown(default)}{in_python})".strip().replace("%", "%%")
        flags = (f"--{name.replace('_', '-')}", *ALIASES.get(name, ()))
        kind = str(parameter.annotation)
        chosen: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": described}
        if kind == "bool":
            groups[heading].add_argument(*flags, action=argparse.BooleanOptionalAction, **chosen)
        else:
            metavar = choices or ("VALUES" if "Sequence" in kind else "VALUE")
            groups[heading].add_argument(*flags, type=_reader(name, kind, default), metavar=metavar, **chosen)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _documentation(text: str) -> dict[str, tuple[str, str, str]]:
    """Return the heading, the choices and the description of each parameter in a numpydoc docstring."""
    section = text.partition("\nParameters\n")[2].partition("\nAttributes\n")[0]
    heading, names, entries = "Parameters", list[str](), dict[str, tuple[str, str, list[str]]]()
    for line in section.splitlines()[1:]:
        if line.startswith(" "):
            for name in names:
                entries[name][2].append(line.strip())
        elif entry := _ENTRY.match(line.strip()):
            names = entry[1].split(", ") if entry[2] else []
            heading = heading if names else entry[1]
            listed = _CHOICES.search(entry[2] or "")
            choices = "" if listed is None else listed[1].replace('"', "").replace(" ", "")
            choices = choices.replace(",", "|") + ("|none" if choices and "or None" in entry[2] else "")
            entries |= {name: (heading, choices, []) for name in names}
    return {
        name: (of, choices, " ".join(lines).replace("``", "").replace("None: ", "none: "))
        for name, (of, choices, lines) in entries.items()
    }


def _reader(name: str, kind: str, default: Any) -> Callable[[str], Any]:
    """Return what reads a value of a parameter with this annotation."""
    one: Callable[[str], Any]
    if "Sequence[float]" in kind:
        one = float
    elif kind == "Any" or "Sequence[str]" in kind:  # random_state, memory
        one = _whole_or_text
    else:
        one = next((of for of in (int, float) if of.__name__ in kind), str)
    text_too = "str" in kind or kind == "Any"

    def read(text: str) -> Any:
        if text.casefold() == "none" and ("None" in kind or default is None):
            return None
        if "Sequence" in kind:
            return tuple(one(part) for part in text.split(","))
        if "tuple[int, int]" in kind and (sides := re.fullmatch(r"(\d+)[x,](\d+)", text)):
            return int(sides[1]), int(sides[2])
        try:
            return one(text)
        except ValueError:
            if text_too:
                return text
            raise

    read.__name__ = "whole number" if one is int else "number" if one is float else "value"  # argparse's errors say it
    return read


def _whole_or_text(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text
