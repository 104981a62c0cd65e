"""What the displays need: matplotlib on first use only; and scikit-learn's own displays with the package's scorers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, small_detector, textured_images
from sklearn.model_selection import LearningCurveDisplay, ValidationCurveDisplay

from skpbas import inspection
from skpbas.inspection import (
    AnomalyMapDisplay,
    BoundaryDisplay,
    CenterDisplay,
    ProCurveDisplay,
    RocCurveDisplay,
    ScoreDistributionDisplay,
    TrainingDisplay,
)
from skpbas.model_selection import NormalKFold
from skpbas.scorers import SCORERS, AnomalyScorer

plt = pytest.importorskip("matplotlib.pyplot")

ONE = np.full((1, 16, 16), 0.7)
DRAWN = {
    AnomalyMapDisplay: lambda ax: AnomalyMapDisplay.from_predictions(
        np.zeros((1, 16, 16, 3), np.uint8), ONE, map_threshold=0.5, ax=ax
    ),
    ScoreDistributionDisplay: lambda ax: ScoreDistributionDisplay.from_predictions([1.0, 2.0], offset=0.5, ax=ax),
    RocCurveDisplay: lambda ax: RocCurveDisplay.from_predictions([0.2, 0.1], [1, -1], ax=ax),
    ProCurveDisplay: lambda ax: ProCurveDisplay.from_predictions([[[0, 1]]], [[[0.1, 0.2]]], ax=ax),
    TrainingDisplay: lambda ax: TrainingDisplay({"loss": [1.0], "center": [1.0]}).plot(ax=ax),
    BoundaryDisplay: lambda ax: BoundaryDisplay.from_predictions(np.eye(4), np.ones((1, 4)), ax=ax),
    CenterDisplay: lambda ax: CenterDisplay.from_predictions(ONE, ONE, ONE, ax=ax),
}


def test_every_display_is_listed_here():
    assert {display.__name__ for display in DRAWN} == {name for name in inspection.__all__ if name.endswith("Display")}


@pytest.mark.parametrize("display", DRAWN, ids=lambda display: display.__name__)
def test_without_matplotlib_the_error_says_what_to_install(display, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf'{display.__name__} needs matplotlib .*pip install "skpbas\[plot\]"'):
        DRAWN[display](None)


@pytest.mark.parametrize("display", DRAWN, ids=lambda display: display.__name__)
def test_a_display_has_a_figure_and_axes_and_takes_those_of_the_caller(display):
    figure, ax = plt.subplots()
    drawn = DRAWN[display](ax)
    assert isinstance(drawn, display)
    assert drawn.figure_ is figure
    assert all(axes.figure is figure for axes in np.ravel(drawn.ax_))
    assert DRAWN[display](None).figure_ is not figure


def test_matplotlib_is_imported_on_first_use():
    code = "import sys, skpbas.inspection; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_has_the_name_of_its_metric(name):
    assert SCORERS[name].__name__ == name
    assert AnomalyScorer(("image_auroc", "image_ap")).__name__ == "anomaly_scores"


@pytest.fixture(scope="module")
def labeled():
    images = textured_images(12, seed=5)
    images[8:, 20:30, 20:30] = 255
    return images, np.repeat([1, -1], [8, 4])


def curve_options(metric):
    scorer = AnomalyScorer(metric, undefined=float("nan"))  # training folds hold no defects
    return {"scoring": scorer, "cv": NormalKFold(2), "score_type": "test"}


def test_the_learning_curve_of_scikit_learn_is_drawn_with_the_name_of_the_metric(labeled):
    display = LearningCurveDisplay.from_estimator(
        small_detector(max_epochs=1), *labeled, train_sizes=[0.5, 1.0], **curve_options("image_auroc")
    )
    assert display.ax_.get_ylabel() == "Image auroc"
    assert np.isfinite(display.test_scores).all()


def test_the_validation_curve_of_scikit_learn_turns_the_miss_rate_around(labeled):
    display = ValidationCurveDisplay.from_estimator(
        small_detector(max_epochs=1),
        *labeled,
        param_name="alpha",
        param_range=[0.3, 1.0],
        negate_score=True,
        **curve_options("neg_miss_rate"),
    )
    assert display.ax_.get_ylabel() == "Miss rate"
    assert ((display.test_scores <= 0) & (display.test_scores >= -1)).all()
