"""What a report found, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from skpbas.inspection._report.records import Inspected

__all__ = ["ReportSummary"]


@dataclass(frozen=True)
class ReportSummary:
    """What a report found; ``str()`` has it in words.

    Attributes
    ----------
    path : Path
        Where the report is.
    n_anomalous, n_unsure, n_normal : int
        Images with each verdict.
    unreadable : list of str
        Names of the images that could not be read.
    false_alarms, misses : int or None
        Good images that are flagged, and defective ones that are not; None where the truth is unknown.
    n_good, n_defective : int or None
        Images that could be read and are known to be good, or defective.
    """

    path: Path
    n_anomalous: int
    n_unsure: int
    n_normal: int
    unreadable: list[str]
    false_alarms: int | None = None
    misses: int | None = None
    n_good: int | None = None
    n_defective: int | None = None

    @classmethod
    def of(cls, found: Inspected, path: Path) -> Self:
        """Count what was found."""
        verdicts = [record.verdict for record in found.records]
        counted = cls(
            path,
            n_anomalous=verdicts.count("anomalous"),
            n_unsure=verdicts.count("unsure"),
            n_normal=verdicts.count("normal"),
            unreadable=[name for name, _ in found.unreadable],
        )
        if not found.known:
            return counted
        flagged = [(record.verdict == "anomalous", bool(record.defective)) for record in found.records]
        n_defective = sum(defective for _, defective in flagged)
        return replace(
            counted,
            false_alarms=flagged.count((True, False)),
            misses=flagged.count((False, True)),
            n_good=len(flagged) - n_defective,
            n_defective=n_defective,
        )

    @property
    def n_inspected(self) -> int:
        """Number of images that could be read."""
        return self.n_anomalous + self.n_unsure + self.n_normal

    def __str__(self) -> str:
        return " ".join(self.sentences())

    def sentences(self) -> list[str]:
        """Return what was found in words."""
        n = self.n_inspected
        said = [
            f"{images(n)} {_were(n)} inspected: {self.n_anomalous} anomalous, {self.n_unsure} unsure, "
            f"{self.n_normal} normal."
        ]
        if self.unreadable:
            n = len(self.unreadable)
            said.append(f"{images(n)} could not be read, and {_were(n)} not inspected.")
        if self.n_good:
            said.append(f"False alarms: {share(self.false_alarms or 0, self.n_good, 'good images')}.")
        if self.n_defective:
            said.append(f"Misses: {share(self.misses or 0, self.n_defective, 'defective images')}.")
        return said


def images(n: int) -> str:
    """Return a number of images in words."""
    return "1 image" if n == 1 else f"{n:,} images"


def share(part: int, whole: int, of: str) -> str:
    """Return a part with the whole and its percentage."""
    return f"{part:,} of {whole:,} {of} ({100 * part / whole:.1f} %)"


def _were(n: int) -> str:
    return "was" if n == 1 else "were"
