"""Damage stored detectors and entries of ``memory`` in many ways, and count what follows.

    python tools/mutate_stored.py --n 1000 --seed 0

Of each mutation it says whether the file was refused by the package, whether reading it failed before the package could
look at it (pickle, joblib and torch raise what they like on a damaged stream, or make something else of it), or whether
the scores are those of the sound file. Scores that differ are wrong in silence: the command then ends with status 1.
"""

from __future__ import annotations

import argparse
import io
import pickle
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.exceptions import NotFittedError
from torch import nn

from skpbas import PBASDetector
from skpbas._features.entries import EntryFolder
from skpbas.datasets import make_inspection_images
from skpbas.errors import FileFormatError

KINDS = ("pickle", "joblib", "compressed joblib", "entry")
SIDE = 32
WRONG = "WRONG IN SILENCE"
Mutation = Callable[[bytearray, np.random.Generator], None]


def flip_bit(content: bytearray, rng: np.random.Generator) -> None:
    """Flip one bit."""
    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))


def flip_bits(content: bytearray, rng: np.random.Generator) -> None:
    """Flip a few bits all over the file."""
    for _ in range(int(rng.integers(2, 9))):
        flip_bit(content, rng)


def randomize(content: bytearray, rng: np.random.Generator) -> None:
    """Write up to 64 random bytes over as many."""
    size = int(rng.integers(1, 65))
    start = int(rng.integers(max(len(content) - size, 1)))
    content[start : start + size] = rng.integers(0, 256, size, dtype=np.uint8).tobytes()


def clear(content: bytearray, rng: np.random.Generator) -> None:
    """Write zeros over a stretch, as a disk does that has lost a block."""
    size = int(rng.integers(1, 513))
    start = int(rng.integers(max(len(content) - size, 1)))
    content[start : start + size] = bytes(len(content[start : start + size]))


def truncate(content: bytearray, rng: np.random.Generator) -> None:
    """Cut the end off."""
    del content[int(rng.integers(len(content))) :]


def remove(content: bytearray, rng: np.random.Generator) -> None:
    """Leave out a stretch."""
    start = int(rng.integers(len(content)))
    del content[start : start + int(rng.integers(1, 65))]


def swap(content: bytearray, rng: np.random.Generator) -> None:
    """Exchange two stretches of 4 bytes, which keeps sums and counts."""
    first, second = (int(i) for i in rng.integers(0, max(len(content) - 4, 1), 2))
    content[first : first + 4], content[second : second + 4] = content[second : second + 4], content[first : first + 4]


MUTATIONS: tuple[Mutation, ...] = (flip_bit, flip_bits, randomize, clear, truncate, remove, swap)


def new_detector(**params: Any) -> PBASDetector:
    """Return a detector whose file has a few kilobytes, so that mutations find every part of it."""
    backbone = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.ReLU(), nn.Conv2d(6, 8, 2, 2))
    weights = np.random.default_rng(0)
    for parameter in backbone.parameters():
        parameter.data.copy_(parameter.new_tensor(weights.normal(0, 0.3, tuple(parameter.shape))))
    shape = {"layers": ["1", "2"], "image_size": SIDE, "hidden_dim": 8, "n_exemplars": 16, "max_epochs": 2}
    return PBASDetector(backbone, precision="float32", device="cpu", random_state=0, **shape, **params)


class Experiment:
    """Sound files, and what follows from each mutation of one."""

    def __init__(self, folder: Path) -> None:
        self.images = make_inspection_images(6, 0, kind="fabric", size=SIDE, random_state=0).images
        detector = new_detector().fit(self.images)
        self.expected = self._results(detector)
        self.files = {
            "pickle": pickle.dumps(detector),
            "joblib": self._dumped(detector, 0),
            "compressed joblib": self._dumped(detector, 3),
        }
        self.memory = folder / "memory"
        self.from_memory = self._results(new_detector(memory=self.memory).fit(self.images))
        self.entries = {path: path.read_bytes() for path in sorted(self.memory.rglob("*.safetensors"))}

    def outcome(self, kind: str, mutation: Mutation, rng: np.random.Generator) -> str:
        """Return what follows from a mutation."""
        if kind == "entry":
            return self._of_entry(mutation, rng)
        content = bytearray(self.files[kind])
        mutation(content, rng)
        load = pickle.load if kind == "pickle" else joblib.load
        try:
            detector = load(io.BytesIO(bytes(content)))
        except FileFormatError:
            return "refused by the package"
        except Exception:  # noqa: BLE001 - a damaged stream fails in any way
            return "not readable"
        if not isinstance(detector, PBASDetector):
            return "not a detector"
        try:
            results = self._results(detector)
        except NotFittedError:
            return "not fitted"
        return "equal scores" if equal(results, self.expected) else WRONG

    def _of_entry(self, mutation: Mutation, rng: np.random.Generator) -> str:
        """Damage every entry, and fit from them."""
        for path, sound in self.entries.items():
            content = bytearray(sound)
            mutation(content, rng)
            path.write_bytes(bytes(content))
        results = self._results(new_detector(memory=self.memory).fit(self.images))
        healed = all(EntryFolder(self.memory).read(path.stem) is not None for path in self.entries)
        for path, sound in self.entries.items():
            path.write_bytes(sound)
        if not equal(results, self.from_memory):
            return WRONG
        return "equal scores, entries written again" if healed else "equal scores"

    def _results(self, detector: Any) -> list[Any]:
        return [detector.decision_function(self.images), detector.anomaly_map(self.images)]

    @staticmethod
    def _dumped(detector: PBASDetector, compress: int) -> bytes:
        file = io.BytesIO()
        joblib.dump(detector, file, compress=compress)
        return file.getvalue()


def equal(results: list[Any], expected: list[Any]) -> bool:
    """Return whether scores and maps are the same to the last bit."""
    return all(np.array_equal(a, b) for a, b in zip(results, expected, strict=True))


def run(n: int, seed: int, folder: Path) -> dict[str, Counter[str]]:
    """Return the outcomes of ``n`` mutations, spread evenly over kinds of files and of damage, by kind of file."""
    experiment, outcomes = Experiment(folder), {kind: Counter[str]() for kind in KINDS}
    for i in range(n):
        kind = KINDS[i % len(KINDS)]
        mutation = MUTATIONS[i // len(KINDS) % len(MUTATIONS)]
        rng = np.random.default_rng([seed, i])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickles of a changed version number, floats of changed bits
            outcome = experiment.outcome(kind, mutation, rng)
        outcomes[kind][outcome] += 1
        if outcome == WRONG:
            print(f"mutation {i}: {kind}, {mutation.__name__}, seed [{seed}, {i}]", file=sys.stderr)
    return outcomes


def main() -> int:
    """Parse the command line and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(options.n, options.seed, Path(folder))
    for kind, counts in outcomes.items():
        print(f"{kind} ({sum(counts.values())})")
        for outcome, count in counts.most_common():
            print(f"  {outcome}: {count}")
    wrong = sum(counts[WRONG] for counts in outcomes.values())
    print(f"wrong in silence: {wrong}")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
