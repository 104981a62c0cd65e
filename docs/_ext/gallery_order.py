"""The order of the gallery: from the first detector to many machines."""

from __future__ import annotations

_ORDER = (
    "plot_first_detector.py",
    "plot_inspect.py",
    "plot_choose_false_alarm_rate.py",
    "plot_tune.py",
    "plot_compare_synthesis.py",
    "plot_search_over_dask.py",
)


class LessonOrder:
    """Sort key of sphinx-gallery; a file that is not in the list is an error, which names it."""

    def __init__(self, src_dir: str) -> None:
        self.src_dir = src_dir

    def __call__(self, filename: str) -> int:
        if filename not in _ORDER:
            raise ValueError(f"{filename} has no place in the gallery: add it to _ORDER in docs/_ext/gallery_order.py")
        return _ORDER.index(filename)

    def __repr__(self) -> str:  # sphinx-gallery compares settings by it
        return f"<LessonOrder {' '.join(_ORDER)}>"
