"""The paper's tables and figures as named sets of the estimator's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from skpbas import PBASDetector, presets
from skpbas._inputs.parameters import check_layers, check_scales, height_and_width, odd

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "thorough": presets.THOROUGH,
    "paper": presets.PAPER,
    "reference": presets.REFERENCE,
}
DETECTION, LOCALIZATION = ("image_auroc",), ("pixel_auroc", "pixel_pro")
THREE = (*DETECTION, *LOCALIZATION)
FIVE = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_pro")
RUNTIME = ("device", "memory", "n_jobs", "verbose", "random_state")  # parameters that say nothing about the method


@dataclass(frozen=True)
class Setting:
    """One row of a study.

    Attributes
    ----------
    name : str
        As in the table of published figures.
    parameters : dict of str to object
        Parameters of the estimator, on top of those of the preset.
    share : float
        Of the training images, drawn by the seed.
    """

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0


FULL = Setting("full")


@dataclass(frozen=True)
class Study:
    """A table or figure of the paper.

    Attributes
    ----------
    name, title : str
    rows : {"categories", "metrics", "settings", "seeds"}
        What the rows of the table are.
    metrics : tuple of str
    settings : tuple of Setting
    seeds : tuple of int or None
        The paper's, where it names them.
    data_set : str or None
        The only one that the table is about; None: any, although figures are published for MVTec AD alone.
    """

    name: str
    title: str
    rows: str
    metrics: tuple[str, ...]
    settings: tuple[Setting, ...] = (FULL,)
    seeds: tuple[int, ...] | None = None
    data_set: str | None = None

    @property
    def heading(self) -> str:
        """The name as printed, and the title."""
        if self is RESULTS:
            return "Every metric"
        return f"{f'Fig. {self.name[3:]}' if self.name.startswith('fig') else f'Table {self.name}'}: {self.title}"


_CENTERS = ("mean", "ema", "kmeans", "alignment")


def _boundary_alone(center_init: str) -> dict[str, Any]:
    # a single scale: only the fused score sums several
    return {"synthesis": None, "patch_score": "distance", "center_init": center_init, "scales": (1.0,)}


def _full(center_init: str = "alignment", synthesis: str = "ray") -> dict[str, Any]:
    return {"synthesis": synthesis, "center_init": center_init}


_ABLATION = (
    Setting("ABL, mean center", _boundary_alone("mean")),
    Setting("ABL, aligned center", _boundary_alone("alignment")),
    Setting("ABL + RBO, Gaussian synthesis", _full(synthesis="gaussian")),
    Setting("ABL + RBO, ray synthesis", _full()),
)
_CENTER_SETTINGS = (
    *(Setting(f"ABL alone, {center}", _boundary_alone(center)) for center in _CENTERS),
    *(Setting(f"full, {center}", _full(center)) for center in _CENTERS),
)
_LAYERS = (
    ("layer1",),
    ("layer2",),
    ("layer3",),
    ("layer1", "layer2"),
    ("layer2", "layer3"),
    ("layer1", "layer2", "layer3"),
)
_FIGURE_12 = (
    *(
        Setting(f"backbone {name}", {"backbone": name})
        for name in ("resnet18", "resnet50", "resnet101", "wide_resnet50_2")
    ),
    *(Setting(f"patch size {side}", {"patch_size": side}) for side in (1, 3, 5, 7)),
    *(Setting("layers " + " + ".join(name[5:] for name in names), {"layers": names}) for names in _LAYERS),
    *(Setting(f"batch size {size}", {"batch_size": size}) for size in (2, 4, 8, 16, 32)),
)
STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        Study("I", "detection on MVTec AD", "categories", DETECTION, data_set="mvtec"),
        Study("II", "localization on MVTec AD", "categories", LOCALIZATION, data_set="mvtec"),
        Study("III", "VisA", "metrics", FIVE, data_set="visa"),
        Study("IV", "MPDD", "metrics", FIVE, data_set="mpdd"),
        Study("V", "components", "settings", THREE, _ABLATION),
        Study("VI", "center initialization", "settings", THREE, _CENTER_SETTINGS),
        Study(
            "VII",
            "share of the training images",
            "settings",
            THREE,
            tuple(Setting(f"{percent} %", share=percent / 100) for percent in (20, 40, 60, 80, 100)),
        ),
        Study("VIII", "random seeds", "seeds", THREE, seeds=(0, 1, 2, 3, 4)),
        Study("fig12", "backbone, patch size, layers and batch size", "settings", THREE, _FIGURE_12),
        Study(
            "fig13",
            "anomaly degree alpha",
            "settings",
            THREE,
            tuple(Setting(f"alpha {alpha:g}", {"alpha": alpha}) for alpha in (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)),
        ),
    )
}
RESULTS = Study("results", "every metric", "categories", FIVE)
"""Every metric by category, for the preset itself."""


def parameters_of(setting: Setting, base: Mapping[str, Any]) -> dict[str, Any]:
    """Return all parameters of the estimator for a setting, without those of runtime.

    A file of weights belongs to one backbone: a setting with another one takes "imagenet".
    """
    parameters = {**base, **setting.parameters}
    default = PBASDetector(**base)
    if parameters.get("backbone", default.backbone) != default.backbone and default.weights is not None:
        parameters["weights"] = "imagenet"
    complete = PBASDetector(**parameters).get_params(deep=False)
    return {name: value for name, value in complete.items() if name not in RUNTIME}


def base_parameters(preset: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a preset with changes.

    Raises
    ------
    ValueError
        A change names no parameter of the method, or has an invalid value.
    """
    allowed = [name for name in PBASDetector().get_params() if name not in RUNTIME]
    if unknown := [name for name in changes if name not in allowed]:
        raise ValueError(f"{unknown[0]!r} is no parameter that a benchmark sets; these are: {', '.join(allowed)}")
    base = {**PRESETS[preset], **changes}
    check_parameters(base)
    return base


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Raise ValueError if ``fit`` would refuse the parameters, whatever the images."""
    detector = PBASDetector(**parameters)
    detector._validate_params()
    check_scales(detector.scales, detector.patch_score, detector.synthesis)
    check_layers(detector.layers)
    height_and_width(detector.image_size)
    odd(detector.patch_size)
