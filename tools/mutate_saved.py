"""Damage saved detectors in many ways, and count what follows.

    python tools/mutate_saved.py --n 10000 --seed 0

Damage is what disks and transfers do: bits, bytes, cuts, omissions, exchanges. Half of the files are edited on purpose
instead, with a checksum that fits again: values of the header and of the description are replaced, names are removed,
added or repeated, shapes and types are changed. A file must be refused by name, or give the scores of the sound one.
An edit that means something, such as of a threshold, makes another detector, which is counted apart.

Everything else is a failure, and the command then ends with status 1: scores that differ, an error of another type, or
a file that takes longer than ten seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mutate_stored import MUTATIONS, equal

import skpbas
from skpbas import PBASDetector
from skpbas.datasets import make_inspection_images
from skpbas.errors import FileFormatError, WeightsError

SIDE = 32
WRONG, CRASH, HANG = "WRONG IN SILENCE", "CRASH", "HANG"
FAILURES = (WRONG, CRASH, HANG)
LONGEST = 10.0  # seconds
REFUSED, EQUAL = "refused", "equal scores"
KINDS = ("damaged", "edited")
DEEP = "[" * 100_000 + "]" * 100_000
VALUES = ("null", "true", "-1", "0", "1e999", "NaN", "-Infinity", "9" * 400, "9" * 5000, '"x"', "[]", "{}", "1.5", DEEP)
"""What values are replaced by."""

Edit = Callable[[str, np.random.Generator], str]


def replace_value(text: str, rng: np.random.Generator) -> str:
    """Replace a number, a text, a list of numbers or a constant by something else."""
    places = list(re.finditer(r'(?<=[:,\[])(-?\d[\d.e+-]*|"[^"]*"(?!:)|\[[^\[\]{}]*\]|null|true|false)', text))
    place = places[int(rng.integers(len(places)))]
    return text[: place.start()] + VALUES[int(rng.integers(len(VALUES)))] + text[place.end() :]


def enlarge(text: str, rng: np.random.Generator) -> str:
    """Make a whole number huge, or move it a little."""
    places = list(re.finditer(r"(?<=[:,\[])\d+(?=[,\]}])", text))
    place = places[int(rng.integers(len(places)))]
    value = int(place.group()) + int(rng.choice([-1, 1, 2, 4, 8, 2**20, 2**31, 2**40, 2**62]))
    return text[: place.start()] + str(value) + text[place.end() :]


def _names(text: str) -> list[re.Match[str]]:
    return list(re.finditer(r'"[\w.]+":', text))


def rename(text: str, rng: np.random.Generator) -> str:
    """Change a name, so that one is missing and one is unknown."""
    place = _names(text)[int(rng.integers(len(_names(text))))]
    return f'{text[: place.start()]}"{place.group()[1:-2]}_":{text[place.end() :]}'


def repeat(text: str, rng: np.random.Generator) -> str:
    """Give a name twice."""
    place = _names(text)[int(rng.integers(len(_names(text))))]
    return f"{text[: place.start()]}{place.group()}0,{text[place.start() :]}"


def add(text: str, rng: np.random.Generator) -> str:
    """Add a name."""
    place = _names(text)[int(rng.integers(len(_names(text))))]
    return f'{text[: place.start()]}"more":{int(rng.integers(9))},{text[place.start() :]}'


def exchange_names(text: str, rng: np.random.Generator) -> str:
    """Exchange two names."""
    first, second = sorted(rng.choice(len(_names(text)), 2, replace=False))
    a, b = _names(text)[first], _names(text)[second]
    return text[: a.start()] + b.group() + text[a.end() : b.start()] + a.group() + text[b.end() :]


def change_type(text: str, rng: np.random.Generator) -> str:
    """Change the type of a tensor."""
    places = list(re.finditer(r'(?<="dtype":)"\w+"', text))
    if not places:
        return rename(text, rng)
    place = places[int(rng.integers(len(places)))]
    types = [f'"{name}"' for name in ("F16", "BF16", "I64", "F64", "U8", "F32", "BOOL") if name not in place.group()]
    return text[: place.start()] + str(rng.choice(types)) + text[place.end() :]


EDITS: tuple[Edit, ...] = (replace_value, enlarge, rename, repeat, add, exchange_names, change_type)


def with_checksum(content: bytes) -> bytes:
    """Return the content of a file with the checksum that fits it."""
    found = re.search(rb'(?<="sha256":")[0-9a-f]{64}', content)
    if found is None:
        return content
    blank = content[: found.start()] + b"0" * 64 + content[found.end() :]
    return content[: found.start()] + hashlib.sha256(blank).hexdigest().encode() + content[found.end() :]


def edited(content: bytes, edit: Edit, rng: np.random.Generator) -> bytes:
    """Return a file with a change to its header or to the description in it, and a fitting checksum and length."""
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size].decode().rstrip(), content[8 + size :]
    if rng.random() < 0.5:
        description = json.loads(header)["__metadata__"]["detector"]
        header = header.replace(json.dumps(description), json.dumps(edit(description, rng)))
    else:
        at = header.index('"},"') + 2  # behind the metadata
        header = header[:at] + edit(header[at:], rng)
    text = header.encode()
    text += b" " * (-len(text) % 8)
    return with_checksum(len(text).to_bytes(8, "little") + text + data)


class Saved:
    """A sound file, and what follows from a mutation of it."""

    def __init__(self, folder: Path, **params: Any) -> None:
        self.images = make_inspection_images(6, 0, kind="fabric", size=SIDE, random_state=0).images
        small = {"image_size": SIDE, "layers": ["layer1"], "feature_dim": 8, "n_exemplars": 8, "hidden_dim": 4}
        quick = {"max_epochs": 1, "precision": "float32", "device": "cpu", "random_state": 0}
        detector = PBASDetector("embedded", **{**small, **quick, **params}).fit(self.images)
        self.path = folder / "part.skpbas"
        detector.save(self.path)
        self.content = self.path.read_bytes()
        self.expected = self._results(detector)

    def outcome(self, content: bytes, *, meaning: bool) -> str:
        """Return what follows from a content. ``meaning``: whether it may be that of another, valid detector."""
        self.path.write_bytes(content)
        start = time.perf_counter()
        try:
            detector = skpbas.load(self.path, device="cpu")
            results = self._results(detector)
        except (FileFormatError, WeightsError) as error:
            known = isinstance(error, FileFormatError) or (meaning and "are not those" in str(error))
            outcome = REFUSED if known and str(self.path) in str(error) and len(str(error)) < 2000 else CRASH
        except Exception as error:  # noqa: BLE001 - what the experiment looks for
            print(f"{type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
            outcome = CRASH
        else:
            outcome = EQUAL if equal(results, self.expected) else "another detector" if meaning else WRONG
        return HANG if time.perf_counter() - start > LONGEST else outcome

    def _results(self, detector: PBASDetector) -> list[Any]:
        images = self.images[:2]
        return [detector.decision_function(images), detector.anomaly_map(images)]


def run(n: int, seed: int, folder: Path) -> dict[str, Counter[str]]:
    """Return the outcomes of ``n`` mutations, half damaged and half edited, by kind."""
    saved, outcomes = Saved(folder), {kind: Counter[str]() for kind in KINDS}
    for i in range(n):
        kind, rng = KINDS[i % 2], np.random.default_rng([seed, i])
        if kind == "damaged":
            change: Any = MUTATIONS[i // 2 % len(MUTATIONS)]
            damaged = bytearray(saved.content)
            if rng.random() < 0.5 and change.__name__ != "truncate":  # in the header, which is a part of the file only
                damaged = damaged[: 8 + int.from_bytes(damaged[:8], "little")]
                change(damaged, rng)
                damaged += saved.content[8 + int.from_bytes(saved.content[:8], "little") :]
            else:
                change(damaged, rng)
            content = bytes(damaged)
        else:
            change = EDITS[i // 2 % len(EDITS)]
            content = edited(saved.content, change, rng)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = saved.outcome(content, meaning=kind == "edited")
        outcomes[kind][outcome] += 1
        if outcome in FAILURES:
            print(f"mutation {i}: {kind}, {change.__name__}, seed [{seed}, {i}]: {outcome}", file=sys.stderr)
    return outcomes


def main() -> int:
    """Parse the command line and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(options.n, options.seed, Path(folder))
    for kind, counts in outcomes.items():
        print(f"{kind} ({sum(counts.values())})")
        for outcome, count in counts.most_common():
            print(f"  {outcome}: {count}")
    failures = {name: sum(counts[name] for counts in outcomes.values()) for name in FAILURES}
    print(", ".join(f"{name}: {count}" for name, count in failures.items()))
    return int(any(failures.values()))


if __name__ == "__main__":
    raise SystemExit(main())
