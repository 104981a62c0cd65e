"""The readiness card of a detector: what to expect of it, as far as good images and generated defects can tell."""

from __future__ import annotations

import ctypes
import dataclasses
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skpbas._cli import console
from skpbas._cli.console import shown

if TYPE_CHECKING:
    from skpbas import PBASDetector

EXTENTS = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3)
"""Extents of drawn defects, as fractions of the shorter side of an image."""

GENERATED, SPOTS = "defects", "spots"
CONTRAST = 60 / 255
"""Of spots: how much darker or brighter they are than the surface, as a fraction of the range of the image's type."""

_N_IMAGES = 20  # that get a defect of each extent
_N_TIMED = 8
_LONGEST_PROBE = 120  # seconds
_SMALLEST = {GENERATED: 4.0, SPOTS: 2.0}  # pixels: generated defects are no smaller
_EDGE = 0.15  # of a side, where no spot is drawn
_FEW = 20
_REDUCED = 1.5  # times that an image is made smaller, from which a larger input shows more
_COARSE = 0.03  # of the shorter side: smaller defects are what most inspections are for
_SHOWN_NAMES = 10


@dataclass(frozen=True)
class DefectSizes:
    """How many images with a drawn defect of each extent score beyond the threshold.

    Attributes
    ----------
    extents : tuple of float
        Fractions of the shorter side of an image.
    found, tried : tuple of int
        For each extent.
    side : float
        Median of the shorter sides of the images, in pixels.
    """

    extents: tuple[float, ...]
    found: tuple[int, ...]
    tried: tuple[int, ...]
    side: float

    @property
    def smallest(self) -> float | None:
        """The smallest extent from which on at least half of the defects are found; None: not even of the largest."""
        smallest = None
        for extent, found, tried in zip(self.extents[::-1], self.found[::-1], self.tried[::-1], strict=True):
            if 2 * found < tried:
                break
            smallest = extent
        return smallest


def readiness_card(
    detector: PBASDetector, saved: Path, good: Sequence[Path], holdout: Sequence[Path] = (), *, n_unreadable: int = 0
) -> list[str]:
    """Measure what to expect of a fitted detector, and return it as lines.

    Parameters
    ----------
    detector : PBASDetector
        Fitted to ``good``.
    saved : Path
        Its file.
    good : sequence of Path
        All images that fit was given.
    holdout : sequence of Path
        Good images that fit was not given; empty: what can be measured is measured on ``good``.
    n_unreadable : int
        Images that fit was not given because they cannot be read.
    """
    left_out = {int(index) for index in detector.training_outliers_}
    learned = [path for index, path in enumerate(good) if index not in left_out]
    sizes = defect_sizes(detector, holdout or learned)
    timed = (holdout or learned)[:_N_TIMED]
    seconds, memory = time_of_prediction(detector, timed), memory_of_prediction(saved, timed[0], detector.device_.type)
    return [
        "",
        "readiness card",
        *console.aligned(
            [
                ("images learned", _learned(detector, n_unreadable)),
                *[("  left out", shown(good[index])) for index in sorted(left_out)[:_SHOWN_NAMES]],
                *([("  left out", f"{len(left_out) - _SHOWN_NAMES} more")] if len(left_out) > _SHOWN_NAMES else []),
                ("false alarms", _expected(detector)),
                ("", _false_alarms(detector, holdout)),
                (
                    "generated defects",
                    f"on {'good images that were not learned' if holdout else _of_training(detector)}",
                ),
                ("", f"{_share(sizes[GENERATED])} scratches and pasted patches, of any contrast"),
                ("", f"{_share(sizes[SPOTS])} spots, {CONTRAST:.0%} of white darker or brighter than the surface"),
                *[("", line) for line in _by_size(sizes)],
                ("smallest defect", _smallest(sizes[SPOTS], detector)),
                ("a prediction", _cost(seconds, memory, detector)),
            ]
        ),
        "advice",
        *[f"  - {line}" for line in advice(detector, sizes[SPOTS])],
    ]


# Measuring ------------------------------------------------------------------------------------------------


def defect_sizes(detector: PBASDetector, images: Sequence[Path], n_images: int = _N_IMAGES) -> dict[str, DefectSizes]:
    """Draw defects of each extent on copies of images, spread over all, and count those that are found.

    A copy of a training image is scored as if that were new, too: its own exemplars do not count. Images that are
    flagged without a defect are left out.

    Returns
    -------
    dict
        For :data:`GENERATED`, scratches and pasted patches as of ``synthetic_validation``, and for :data:`SPOTS`,
        round and of one contrast.
    """
    from skpbas._inputs.decoding import decode

    chosen = np.unique(np.linspace(0, len(images) - 1, min(n_images, len(images))).round().astype(int)).tolist()
    sides: list[int] = []
    drawn: list[tuple[str, float]] = []  # ("", 0): an image as it is, before its copies

    def copies() -> Iterator[NDArray[Any]]:
        for number, index in enumerate(chosen):
            pixels = decode(images[index], str(images[index])).pixels
            sides.append(min(pixels.shape[:2]))
            drawn.append(("", 0.0))
            yield pixels
            for place, (kind, extent) in enumerate(product(_SMALLEST, EXTENTS)):
                if extent * sides[-1] < _SMALLEST[kind]:
                    continue
                copy = _DRAW[kind](pixels, extent, len(EXTENTS) * number + place)
                if copy is not None:
                    drawn.append((kind, extent))
                    yield copy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a defect may make an image unlike those of fit: it is meant to
        shown = console.progress(copies(), "measuring", len(chosen) * (len(_SMALLEST) * len(EXTENTS) + 1))
        flagged = list(_flagged(detector, shown, lambda i: not drawn[i][0]))
    return {kind: _counted(kind, drawn, flagged, float(np.median(sides))) for kind in _SMALLEST}


def _counted(kind: str, drawn: Sequence[tuple[str, float]], flagged: Sequence[bool], side: float) -> DefectSizes:
    """Count the copies that are flagged, of images that are not flagged without a defect."""
    of_extents: dict[float, list[bool]] = {}
    alarm = False
    for (of_kind, extent), found in zip(drawn, flagged, strict=True):
        if not of_kind:
            alarm = found
        elif of_kind == kind and not alarm:
            of_extents.setdefault(extent, []).append(found)
    extents = tuple(sorted(of_extents))
    found_of, tried = (tuple(of(of_extents[extent]) for extent in extents) for of in (sum, len))
    return DefectSizes(extents, found_of, tried, side)


def _flagged(detector: PBASDetector, images: Iterable[Any], is_source: Callable[[int], bool]) -> Iterator[bool]:
    """Yield whether each image is beyond the threshold; those behind a training image are scored as if it were new."""
    from skpbas._features.scoring import score
    from skpbas.core.devices import callers_modes_left
    from skpbas.errors import InvalidImageError

    model, index = detector.model_, None
    bias = float(getattr(model.patch_scorer, "bias", 1.0))  # of scores without an image's own exemplars
    level_maps = detector._level_maps(iter(images), model.extractor, detector._reading)
    with callers_modes_left(grad=False):
        for number, (_, batch) in enumerate(level_maps.one_by_one()):
            if isinstance(batch, InvalidImageError):
                raise batch
            if is_source(number):
                index = batch.training_index
            (value,) = score(model, dataclasses.replace(batch, training_index=index)).sample_scores
            as_new = index is not None and bool((index >= 0).all())
            yield value * (bias if as_new else 1.0) < detector.offset_


def _with_defect(pixels: NDArray[Any], extent: float, seed: int) -> NDArray[Any] | None:
    """Return a copy of an image with a generated defect; None if no place shows it."""
    from skpbas.errors import InvalidImageError
    from skpbas.model_selection import synthetic_validation

    kind = ("cut_paste", "scratch")[(seed + seed // len(EXTENTS)) % 2]
    try:
        (_, copy), *_ = synthetic_validation([pixels], kinds=[kind], size=(extent, extent), random_state=seed)
    except InvalidImageError:
        return None
    return copy


def with_spot(pixels: NDArray[Any], extent: float, seed: int) -> NDArray[Any]:
    """Return a copy of an image with a spot, which is darker or brighter as there is room for."""
    rng = np.random.default_rng(seed)
    shape, white = pixels.shape[:2], 1.0 if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max)
    top, left = rng.uniform(_EDGE, 1 - _EDGE, 2) * shape
    radius = extent * min(shape) / 2
    rows, columns = (
        np.arange(max(int(at - radius - 1), 0), min(int(at + radius + 2), side))
        for at, side in zip((top, left), shape, strict=True)
    )
    distance = np.hypot(rows[:, None] + 0.5 - top, columns + 0.5 - left)
    coverage = np.clip(radius + 0.5 - distance, 0.0, 1.0)
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    before = pixels[window].astype(np.float64)
    level, either = before.mean() / white, float(rng.choice([-CONTRAST, CONTRAST]))
    change = white * (CONTRAST if level < CONTRAST else -CONTRAST if level > 1 - CONTRAST else either)
    after = np.clip(before + change * (coverage if pixels.ndim == 2 else coverage[..., None]), 0, white)
    copy = pixels.copy()
    copy[window] = np.rint(after) if pixels.dtype.kind == "u" else after
    return copy


_DRAW: Mapping[str, Callable[[NDArray[Any], float, int], NDArray[Any] | None]] = MappingProxyType(
    {GENERATED: _with_defect, SPOTS: with_spot}
)


def time_of_prediction(detector: PBASDetector, images: Sequence[Path]) -> float:
    """Return the median time of an image in seconds, from its file to its anomaly map."""
    times: list[float] = []

    def timed() -> Iterator[Path]:
        for path in (images[0], *images):  # the first pass of a network is slower
            times.append(time.perf_counter())
            yield path

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ends = [time.perf_counter() for _ in detector.score_stream(timed())]
    return float(np.median(np.subtract(ends, times)[1:]))


def memory_of_prediction(saved: Path, image: Path, device: str) -> int | None:
    """Return the largest memory, in bytes, of a process that inspects an image; None if it cannot be measured."""
    if getattr(sys, "frozen", False):  # sys.executable is another program then
        return None
    code = "import sys; from skpbas._cli.readiness import print_peak; print_peak(*sys.argv[1:])"
    command = [sys.executable, "-W", "ignore", "-c", code, str(saved), str(image), device]
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        return int(subprocess.run(command, capture_output=True, check=True, timeout=_LONGEST_PROBE).stdout)
    return None


def print_peak(saved: str, image: str, device: str) -> None:
    """Inspect an image, and print the largest memory that this process used until then."""
    import skpbas

    list(skpbas.load(saved, device=device).score_stream([Path(image)]))
    console.echo(str(peak_bytes()))


def peak_bytes() -> int:
    """Return the largest memory that this process has used."""
    if sys.platform == "win32":
        return _peak_working_set()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else 1024 * int(peak)


def _peak_working_set() -> int:
    """Return the same on Windows."""
    counters = (ctypes.c_size_t * 10)()  # PROCESS_MEMORY_COUNTERS_EX: two 32-bit numbers, the peak, and others
    api: Any = ctypes
    api.windll.psapi.GetProcessMemoryInfo(ctypes.c_void_p(-1), ctypes.byref(counters), ctypes.sizeof(counters))
    return int(counters[1])


# Wording --------------------------------------------------------------------------------------------------


def _learned(detector: PBASDetector, n_unreadable: int) -> str:
    n_left_out = len(detector.training_outliers_)
    unreadable = f"; {n_unreadable} could not be read" if n_unreadable else ""
    left_out = (
        f"; {n_left_out} left out, because {'they look' if n_left_out > 1 else 'it looks'} defective"
        if n_left_out
        else ""
    )
    return f"{detector.n_samples_fit_}{left_out}{unreadable}"


def _expected(detector: PBASDetector) -> str:
    if detector.contamination == "auto":
        return f"aimed at: {detector.false_alarm_rate:.3g} of unseen good images (false_alarm_rate)"
    return f"aimed at: {float(detector.contamination):.3g} of the training images (contamination)"


def _false_alarms(detector: PBASDetector, holdout: Sequence[Path]) -> str:
    if holdout:
        flagged = [result.label == -1 for result in detector.score_stream(list(holdout), maps=False)]
        n_flagged, n, of = sum(flagged), len(flagged), "good images that were not learned"
    else:
        scores = detector._judge().normal_scores
        n_flagged, n = int((scores < detector.offset_).sum()), len(scores)
        of = _of_training(detector)
    low, high = interval(n_flagged, n)
    return f"measured: {n_flagged} of {n} {of}; so {low:.1%} to {high:.1%} with 95 % confidence"


def _of_training(detector: PBASDetector) -> str:
    as_new = detector.patch_score == "fused" and detector.synthesis is not None
    return f"training images, scored as {'if they were new' if as_new else 'they are, which differs from new ones'}"


def interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact confidence interval (Clopper, Pearson) of a share of which k of n were seen."""
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, k, n - k + 1)) if k else 0.0
    return low, float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0


def _share(sizes: DefectSizes) -> str:
    found, tried = sum(sizes.found), sum(sizes.tried)
    return f"{found} of {tried} ({found / tried:.0%})" if tried else "none of 0"


def _by_size(sizes: Mapping[str, DefectSizes]) -> list[str]:
    of_kinds = {
        kind: dict(zip(of.extents, zip(of.found, of.tried, strict=True), strict=True)) for kind, of in sizes.items()
    }
    side, lines = sizes[SPOTS].side, []
    for extent in sizes[SPOTS].extents:
        shares = [f"{of[extent][0] / of[extent][1]:4.0%} of {kind}" for kind, of in of_kinds.items() if extent in of]
        lines.append(f"{extent * side:5.0f} pixels ({extent:.0%} of the shorter side): {', '.join(shares)}")
    return ["found at the threshold, by length or diameter:", *lines]


def _smallest(sizes: DefectSizes, detector: PBASDetector) -> str:
    if not sizes.extents:
        return "not measured"
    if (smallest := sizes.smallest) is None:
        return f"fewer than half of the spots are found even at {sizes.extents[-1] * sizes.side:.0f} pixels"
    at_most = " or less" if smallest == sizes.extents[0] else ""
    seen = smallest * min(detector.map_shape_)
    return (
        f"a spot of about {smallest * sizes.side:.0f} pixels{at_most} is found half the time "
        f"({seen:.0f} pixels of the network's input)"
    )


def _cost(seconds: float, memory: int | None, detector: PBASDetector) -> str:
    used = "" if memory is None else f"; a process that predicts takes {memory / 2**20:.0f} MiB"
    on_gpu = " of main memory" if used and detector.device_.type != "cpu" else ""
    return f"{1000 * seconds:.0f} ms per image on {detector.device_}, from the file to the anomaly map{used}{on_gpu}"


def advice(detector: PBASDetector, sizes: DefectSizes) -> list[str]:
    """Return what to do before the detector is used, the most important first."""
    lines = []
    if n := len(detector.training_outliers_):
        lines.append(f"look at the {n} image{'s' * (n > 1)} left out: --no-exclude-outliers keeps good ones")
    if detector.n_samples_fit_ < _FEW:
        lines.append(f"{detector.n_samples_fit_} images show little of how good parts vary: give {_FEW} or more")
    good, (height, width) = detector.good_statistics_, detector.map_shape_
    reduced = max(good.heights[1] / height, good.widths[1] / width)
    smallest = sizes.smallest
    if reduced > _REDUCED and (smallest is None or smallest >= _COARSE):
        size, tiles = detector.image_size, ""
        if isinstance(size, int):
            larger = str(2 * size)
            tiles = f", or --tile {size}, which inspects every pixel" if detector.tile is None else ""
        else:
            larger = "x".join(str(2 * side) for side in size)
        lines.append(
            f"the images are reduced by a factor {reduced:.1f}; if smaller defects matter, try --image-size {larger} "
            f"(about 4 times the time){tiles}"
        )
    elif smallest is None and sizes.extents:
        other = ", as may --backbone resnet18" if detector.backbone == "embedded" else ""
        lines.append(f"few defects are found: a larger --false-alarm-rate, such as 0.05, misses fewer{other}")
    lines.append("generated defects are not real ones: measure on images of real ones with skpbas evaluate")
    return lines
