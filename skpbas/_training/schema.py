"""Checks of values that were read from JSON: of which type, and within which bounds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from skpbas.errors import FileFormatError

Check = Callable[[Any], bool]

_LARGEST = 2**53  # whole numbers up to here are the same in every reader of JSON


def whole(smallest: int = 0, largest: int = _LARGEST) -> Check:
    """Whole numbers, no bool."""
    return lambda value: type(value) is int and smallest <= value <= largest


def number(smallest: float = -1e300, largest: float = 1e300) -> Check:
    """Numbers with a decimal point."""
    return lambda value: type(value) is float and smallest <= value <= largest


def one_of(*allowed: Any) -> Check:
    """Some values, of the same type too."""
    return lambda value: any(type(value) is type(one) and value == one for one in allowed)


def text(value: Any) -> bool:
    """Text of up to 4,096 characters."""
    return isinstance(value, str) and len(value) <= 4096


def boolean(value: Any) -> bool:
    """True and False."""
    return isinstance(value, bool)


def sha256(value: Any) -> bool:
    """A digest of 64 hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def optional(check: Check) -> Check:
    """None, or what passes another check."""
    return lambda value: value is None or check(value)


def list_of(check: Check, smallest: int, largest: int) -> Check:
    """A list of a number of values that pass another check."""
    return lambda value: isinstance(value, list) and smallest <= len(value) <= largest and all(map(check, value))


def check_section(values: Any, name: str, checks: Mapping[str, Check]) -> None:
    """Check that a section of a document has exactly these entries, each of which passes its check.

    Raises
    ------
    FileFormatError
        It has not; the message names the section and the entry.
    """
    if not isinstance(values, dict):
        raise FileFormatError(f"{name} is not a JSON object")
    if missing := checks.keys() - values.keys():
        raise FileFormatError(f"{name}: {min(missing)!r} is missing")
    if additional := values.keys() - checks.keys():
        raise FileFormatError(f"{name}: {min(additional)[:40]!r} is unknown")
    for key, check in checks.items():
        if not check(values[key]):
            raise FileFormatError(f"{name}: {key!r} has no valid value")
