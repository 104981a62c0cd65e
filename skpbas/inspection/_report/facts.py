"""Tables of a report: how the detector was set, what computed, and what the images were like."""

from __future__ import annotations

import inspect
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import skpbas
from skpbas._inputs.image_statistics import GoodStatistics, value_in_range
from skpbas._inputs.mask_reader import with_maps
from skpbas.inspection._report.records import Inspected

Rows = list[tuple[str, ...]]

_PACKAGES = ("torch", "torchvision", "scikit-learn", "numpy", "scipy", "pillow")
_LONGEST = 200


def fitted_rows(detector: Any, found: Inspected) -> Rows:
    """Return what the detector learned: name and value."""
    maker = with_maps(detector)
    rows: Rows = [("kind", _kind(detector))]
    if (n := getattr(maker, "n_samples_fit_", None)) is not None:
        left_out = len(getattr(maker, "training_outliers_", ()))
        rows.append(("training images", f"{n:,}" + (f", and {left_out} left out as outliers" if left_out else "")))
    height, width = maker.map_shape_
    rows.append(("input of the network", f"{height} x {width} pixels (height x width)"))
    rows.append(("offset_, on score_samples", f"{found.offset:.6g}"))
    unsure = f"margins from 0 to {found.unsure_margin:.4g}" if found.unsure_margin else "no images"
    rows.append(("unsure", unsure))
    rows.append(("map_threshold_, on anomaly maps", f"{found.map_threshold:.6g}"))
    if (device := getattr(maker, "device_", getattr(maker, "provider", None))) is not None:
        rows.append(("computed on", str(device)))
    return rows


def settings_rows(detector: Any) -> Rows:
    """Return the parameters: name, value, and the default where it is another."""
    if hasattr(detector, "metadata_"):
        return [(name, _shown(value), "") for name, value in detector.metadata_.get("settings", {}).items()]
    rows: Rows = []
    for prefix, one in (("", detector), ("detector_.", with_maps(detector))):
        if (one is detector and prefix) or not hasattr(one, "get_params"):
            continue
        defaults = inspect.signature(type(one)).parameters
        for name, value in one.get_params(deep=False).items():
            default = defaults[name].default if name in defaults else inspect.Parameter.empty
            same = default is inspect.Parameter.empty or _shown(default) == _shown(value)
            rows.append((f"{prefix}{name}", _shown(value), "" if same else _shown(default)))
    return rows


def version_rows(detector: Any) -> Rows:
    """Return the versions of what computed, and of what exported the detector: name and version."""
    rows: Rows = [("skpbas", skpbas.__version__), ("Python", platform.python_version())]
    for package in _PACKAGES:
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            continue
    exported = getattr(detector, "metadata_", {}).get("versions", {})
    return [
        *rows,
        ("system", platform.platform()),
        *((f"{name} of the export", str(one)) for name, one in exported.items()),
    ]


def comparison_rows(good: GoodStatistics, seen: GoodStatistics) -> Rows:
    """Return what the images of ``fit`` and these are like: property, there, and here."""
    both = (good, seen)
    return [
        ("images", *(f"{one.n_images:,}" for one in both)),
        ("height, pixels", *(_range(one.heights, 1, "{:.0f}") for one in both)),
        ("width, pixels", *(_range(one.widths, 1, "{:.0f}") for one in both)),
        ("colors", *({"mixed": "gray and color"}.get(one.mode, one.mode) for one in both)),
        ("values", *(_values(one) for one in both)),
        ("brightness, %", *(_range([100 * value for value in one.brightness], 2, "{:.1f}") for one in both)),
        ("contrast, %", *(_range([100 * value for value in one.contrast], 2, "{:.1f}") for one in both)),
    ]


def _range(values: Any, middle: int, form: str) -> str:
    """Return the smallest, median and largest in words."""
    low, typical, high = (form.format(value) for value in (values[0], values[middle], values[-1]))
    return low if low == high else f"{low} to {high}, median {typical}"


def _values(one: GoodStatistics) -> str:
    bits = f", {one.bit_depth} bits in use" if one.bit_depth not in (None, 8) else ""
    return f"{' and '.join(one.kinds)}, largest {value_in_range(one.kinds[-1], one.largest)}{bits}"


def _kind(detector: Any) -> str:
    maker = with_maps(detector)
    return type(detector).__name__ + (f" of {type(maker).__name__}" if maker is not detector else "")


def _shown(value: Any) -> str:
    text = " ".join((f'"{value}"' if isinstance(value, str) else str(value)).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
