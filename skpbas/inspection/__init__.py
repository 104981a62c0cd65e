"""Looking at what a detector finds: a report of many images in one file, and plots.

The plots follow scikit-learn's convention for displays: each has the class methods ``from_estimator`` and, where arrays
are enough, ``from_predictions``, the method ``plot``, and the attributes ``figure_`` and ``ax_``. They need matplotlib:
``pip install "skpbas[plot]"``.
"""

from skpbas.inspection._anomaly_maps import AnomalyMapDisplay
from skpbas.inspection._curves import ProCurveDisplay, RocCurveDisplay
from skpbas.inspection._feature_space import BoundaryDisplay, CenterDisplay
from skpbas.inspection._report.summary import ReportSummary
from skpbas.inspection._report.writing import write_report
from skpbas.inspection._score_distribution import ScoreDistributionDisplay
from skpbas.inspection._training_curves import TrainingDisplay

__all__ = [
    "AnomalyMapDisplay",
    "BoundaryDisplay",
    "CenterDisplay",
    "ProCurveDisplay",
    "ReportSummary",
    "RocCurveDisplay",
    "ScoreDistributionDisplay",
    "TrainingDisplay",
    "write_report",
]
