"""Pictures compared with stored ones; pytest-mpl does it in every run, because conftest.py switches it on.

To store them anew after an intended change, and look at each::

    python -m pytest tests/inspection/test_compared_pictures.py --mpl-generate-path=tests/inspection/baseline

All is drawn from arrays made here, without training, and without text: its shapes depend on the version of freetype,
and other tests read it.
"""

from __future__ import annotations

import numpy as np
import pytest

from skpbas.inspection import (
    AnomalyMapDisplay,
    BoundaryDisplay,
    CenterDisplay,
    ProCurveDisplay,
    RocCurveDisplay,
    ScoreDistributionDisplay,
    TrainingDisplay,
)

pytest.importorskip("pytest_mpl", reason="pytest-mpl is not installed")

DPI = 50

TOLERANCE = 2
"""Root mean square difference of the pixels, of 255. The pictures of matplotlib 3.9, 3.10 and 3.11 differ by up to 1.2,
because of how each rounds the edges of images; without the contour of a map, a box or the outline of a mask it is 3.9
and more."""


def compared(**options):
    return pytest.mark.mpl_image_compare(
        baseline_dir="baseline",
        tolerance=TOLERANCE,
        remove_text=True,
        savefig_kwargs={"dpi": DPI},
        **{"style": "default", **options},
    )


def bare(figure):
    """The figure without text, legends and frames, and without the layout that makes room for them."""
    from matplotlib.text import Text

    figure.set_layout_engine("none")
    for text in figure.findobj(Text):
        text.set_text("")
    for legend in [*figure.legends, *(ax.get_legend() for ax in figure.axes)]:
        if legend is not None:
            legend.remove()
    figure.set_dpi(DPI)
    figure.canvas.draw()  # finds where aspect ratios put the axes
    width, height = figure.get_size_inches() * DPI
    for ax in figure.axes:
        ax.spines[:].set_visible(False)
        left, bottom, right, top = ax.get_position().extents * [width, height, width, height]
        places = np.round([left, bottom, right - left, top - bottom])  # whole pixels, which all versions fill alike
        ax.set_aspect("auto")
        ax.set_position(places / [width, height, width, height])
    return figure


def parts():
    """Two images, their maps, and the mask of the second."""
    rows, columns = np.indices((16, 24))
    texture = 110 + 40 * np.sin(columns / 2) + 20 * np.cos(rows / 3)
    images = [np.uint8(texture), np.uint8(np.stack([texture, texture * 0.9, texture * 0.7], axis=-1))]
    squared = (rows - 7) ** 2 + (columns - 15) ** 2
    good = np.float32(0.38 + 0.05 * np.sin(rows / 2) * np.cos(columns / 3))
    bad = np.maximum(good, np.float32(0.85 * np.exp(-squared / 40)))
    return images, [good, bad], [None, squared < 7]


def map_display(**options):
    images, maps, masks = parts()
    return AnomalyMapDisplay.from_predictions(images, maps, map_threshold=0.55, masks=masks, **options)


@compared()
def test_images_beside_their_maps():
    return bare(map_display().figure_)


@compared(style="dark_background")
def test_overlays_in_a_dark_style_with_a_part_that_was_not_inspected():
    images, maps, masks = parts()
    maps = [np.where(np.arange(24) < 4, np.nan, anomaly_map) for anomaly_map in maps]
    display = AnomalyMapDisplay.from_predictions(
        images, maps, map_threshold=0.55, masks=masks, kind="overlay", n_columns=2
    )
    return bare(display.figure_)


@compared()
def test_scores_of_three_groups():
    rng = np.random.default_rng(0)
    good, bad = rng.normal(-2, 0.2, 40), -2.4 - rng.gamma(1.0, 2.0, 30)
    display = ScoreDistributionDisplay.from_predictions(
        np.r_[good, bad],
        np.repeat([1, -1], [40, 30]),
        offset=-2.5,
        unsure_offset=-2.3,
        training_scores=rng.normal(-2, 0.15, 60),
    )
    return bare(display.figure_)


@compared()
def test_a_roc_curve():
    rng = np.random.default_rng(0)
    scores = np.r_[rng.normal(0, 1, 500), rng.normal(2.5, 1, 60)]
    display = RocCurveDisplay.from_predictions(-scores, np.repeat([1, -1], [500, 60]), offset=-2.0)
    return bare(display.figure_)


@compared()
def test_a_pro_curve():
    _, maps, masks = parts()
    maps = [m + np.random.default_rng(i).normal(0, 0.1, m.shape) for i, m in enumerate(maps)]
    return bare(ProCurveDisplay.from_predictions(masks, maps, threshold=0.55).figure_)


@compared()
def test_a_training():
    falling = 1 / np.arange(1, 21)
    curve = {"center": 0.5 + falling, "normal": 1.2 + 0.3 * falling, "anomaly": 1.1 + 0.4 * falling}
    display = TrainingDisplay({"loss": sum(curve.values()), **curve}, n_heads=2).plot()
    return bare(display.figure_)


@compared()
def test_features_around_their_centers():
    rng = np.random.default_rng(0)
    center = rng.normal(size=(30, 8))
    good = center[rng.integers(30, size=300)] + rng.normal(0, 0.2, (300, 8))
    display = BoundaryDisplay.from_predictions(good, center, good * 1.15, rng.normal(1, 1, (60, 8)))
    return bare(display.figure_)


@compared()
def test_distances_to_three_center_sets():
    rng = np.random.default_rng(0)
    bumps = 1 + np.hypot(*np.meshgrid(np.linspace(-1, 1, 12), np.linspace(-1, 1, 8)))
    groups = [scale * bumps * rng.gamma(9, 1 / 9, (20, 8, 12)) for scale in (1, 0.9, 0.6)]
    return bare(CenterDisplay.from_predictions(*groups).figure_)
