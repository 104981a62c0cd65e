"""The command ``skpbas demo``: images in, five metrics and one picture out.

Heavy modules are imported inside functions, so that ``--help`` is fast.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skpbas._cli import console
from skpbas._cli.console import UsageError, aligned
from skpbas._cli.labeled import good_images
from skpbas._cli.paths import NamedImages, images_below, readable
from skpbas.errors import DatasetError

if TYPE_CHECKING:
    from skpbas import PBASDetector, Result

DEFAULT_NETWORK: dict[str, Any] = {"backbone": "embedded", "weights": "imagenet"}
"""Network of the demo without ``--backbone``."""

GENERATED_EPOCHS = 60
"""Training epochs on generated images; on others the estimator's "auto"."""

PICTURE_NAME = "demo.png"

_N_TRAIN, _N_NORMAL, _N_ANOMALOUS = 40, 12, 15
_RANDOM_FEATURES = (
    "random features: {backbone} without pretrained weights, which shows the workflow but not the accuracy; "
    "pass --backbone and --weights for pretrained features"
)

_EXAMPLES = """\
examples:
  skpbas demo
  skpbas demo --kind printed_board --seed 1
  skpbas demo --data mvtec/bottle
  skpbas demo --data parts/good --check parts/today
  skpbas demo --data parts/good --check "parts/today/*.png" --image-size 384

To keep a detector, and for many images: skpbas fit and skpbas predict.

exit codes: 0 done, 2 wrong use, 3 some images could not be read
"""

Echo = Callable[[str], object]


@dataclass(frozen=True)
class DemoOptions:
    """Settings of the demo, named as on the command line.

    Attributes
    ----------
    data : Path or None
        Category folder in MVTec AD's layout, or a folder of normal images; None: generate images.
    check : tuple of str
        Images to score with a detector fitted to ``data``: files, folders and patterns.
    kind : str
        Product to generate, one of :data:`skpbas.datasets.INSPECTION_KINDS`.
    backbone : str or None
        None: :data:`DEFAULT_NETWORK`.
    weights : str or None
        "imagenet", the path of a state dict, or "none" for random weights; None: "imagenet" with a backbone.
    image_size : int
        Side of the network's input, in pixels.
    epochs : int or None
        Training epochs; None: :data:`GENERATED_EPOCHS` for generated images, otherwise "auto".
    device : str
        As for the estimator.
    seed : int
        Random seed of the generated images and of the detector.
    output : Path
        Folder for the picture, created if missing.
    rows : int or None
        Largest number of images in the picture, at least 2; None: 20, or 8 with masks.
    """

    data: Path | None = None
    check: tuple[str, ...] = ()
    kind: str = "hex_nut"
    backbone: str | None = None
    weights: str | None = None
    image_size: int = 256
    epochs: int | None = None
    device: str = "auto"
    seed: int = 0
    output: Path = Path("skpbas-demo")
    rows: int | None = None


@dataclass(frozen=True)
class DemoData:
    """Training and test images.

    Attributes
    ----------
    train : sequence of images
        Normal images.
    test : sequence of images
    names : list of str
        Caption of each test image in the picture.
    labels : ndarray of shape (n_test,) or None
        +1 normal, -1 anomalous; None if unknown.
    masks : list or None
        An array, a path, or None for a normal image, per test image.
    n_unreadable : int
        Images that are left out because they cannot be read.
    """

    train: Sequence[Any]
    test: Sequence[Any]
    names: list[str]
    labels: NDArray[np.int64] | None = None
    masks: list[Any] | None = None
    n_unreadable: int = 0


@dataclass(frozen=True)
class Predictions:
    """Predictions for the test images.

    Attributes
    ----------
    margins : ndarray of shape (n_test,)
        ``decision_function``: negative for anomalous images.
    anomaly_maps : list of ndarray of shape (H, W)
        At model size.
    verdicts : list of str
        "normal", "unsure" or "anomalous".
    p_values : list of float
    """

    margins: NDArray[np.float64]
    anomaly_maps: list[NDArray[np.float32]]
    verdicts: list[str]
    p_values: list[float]

    @classmethod
    def of(cls, results: Sequence[Result], offset: float) -> Predictions:
        """Return what the results of a stream say."""
        return cls(
            np.array([result.score for result in results]) - offset,
            [result.map for result in results if result.map is not None],
            [str(result.verdict) for result in results],
            [float(result.p_value or 0) for result in results],
        )


@dataclass(frozen=True)
class Outcome:
    """What the demo left behind.

    Attributes
    ----------
    picture : Path
    n_unreadable : int
        Images that were left out because they cannot be read.
    """

    picture: Path
    n_unreadable: int


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the parser of this command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="fit a detector and draw its anomaly maps",
        description="Generate or load images, fit a detector, print five metrics and draw a picture.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = DemoOptions()
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="a category in MVTec AD's layout (train/good, test, ground_truth), or a folder of normal images "
        "together with --check (default: generate images)",
    )
    parser.add_argument(
        "--check",
        nargs="+",
        action="extend",
        default=[],
        metavar="WHAT",
        help='images to score with a detector fitted to --data: files, folders, and patterns such as "parts/*.png"',
    )
    parser.add_argument(
        "--kind",
        default=default.kind,
        help="product to generate: fabric, brushed_metal, wood, hex_nut, screw or printed_board (default: %(default)s)",
    )
    parser.add_argument(
        "--backbone",
        metavar="NAME",
        help="embedded, resnet18, resnet50, resnet101, wide_resnet50_2 or timm:NAME "
        f"(default: {DEFAULT_NETWORK['backbone']}"
        + (", with random weights)" if DEFAULT_NETWORK["weights"] is None else ")"),
    )
    parser.add_argument(
        "--weights",
        metavar="WHICH",
        help="weights of --backbone: imagenet (downloaded once by torchvision or timm), the path of a state dict, "
        "or none for random weights (default: imagenet)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        default=default.image_size,
        metavar="PIXELS",
        help="side of the network's input (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help=f"training epochs (default: {GENERATED_EPOCHS} for generated images, otherwise 'auto')",
    )
    parser.add_argument(
        "--device", default=default.device, help="auto, cpu, cuda, cuda:1, ... or mps (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=default.seed,
        metavar="N",
        help="random seed for images and training (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=default.output,
        metavar="DIR",
        help=f"folder for the picture, {PICTURE_NAME} (default: %(default)s)",
    )
    parser.add_argument(
        "--rows", type=int, metavar="N", help="most images in the picture, at least 2 (default: 20, or 8 with masks)"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the command, and return its exit code."""
    given = {name: getattr(arguments, name) for name in DemoOptions.__dataclass_fields__}
    outcome = run_demo(DemoOptions(**given | {"check": tuple(arguments.check)}))
    return console.UNREADABLE if outcome.n_unreadable else console.DONE


def run_demo(options: DemoOptions, echo: Echo = console.echo) -> Outcome:
    """Run the demo.

    Parameters
    ----------
    options : DemoOptions
    echo : callable
        Called with each line of the report.

    Returns
    -------
    Outcome

    Raises
    ------
    SkpbasError, ValueError
        Unusable images, weights or settings.
    """
    from skpbas._cli.sheet import draw_sheet, rows_to_show
    from skpbas.masks import to_map_size

    if options.rows is not None and options.rows < 2:
        raise ValueError(f"--rows {options.rows}: a picture has at least 2 rows")
    network = choose_network(options)
    if network["weights"] is None:
        echo(_RANDOM_FEATURES.format(**network))
    data = load_data(options)
    folder = console.made_folder(options.output, "--output")
    echo(f"training on {len(data.train)} normal images, then scoring {len(data.test)}")
    detector = fit_detector(data, options)
    predictions = predict(detector, data.test)
    masks = None if data.masks is None else to_map_size(data.masks, data.test, detector)
    if data.labels is None or masks is None:
        report = decision_table(data.names, predictions)
    else:
        report = metric_table(data.labels, masks, predictions)
    for line in report:
        echo(line)
    path = folder / PICTURE_NAME
    shown = rows_to_show(predictions.margins, data.names, data.labels, options.rows)
    draw_sheet(detector, data, predictions, masks, shown).save(path)
    which = "all" if len(shown) == len(data.test) else f"{len(shown)} of {len(data.test)}"
    echo(
        f"wrote {path}: {which} images, the most anomalous first, with "
        + ("anomaly map and overlay" if masks is None else "mask, anomaly map and overlay")
    )
    return Outcome(path, data.n_unreadable)


# Options and data -----------------------------------------------------------------------------------------


def choose_network(options: DemoOptions) -> dict[str, Any]:
    """Return the estimator's ``backbone`` and ``weights``.

    Raises
    ------
    ValueError
        ``weights`` without ``backbone``.
    """
    if options.backbone is None:
        if options.weights is not None:
            raise ValueError(f"--weights {options.weights} needs --backbone, the network that the weights are for")
        return dict(DEFAULT_NETWORK)
    weights = options.weights or "imagenet"
    return {"backbone": options.backbone, "weights": None if weights == "none" else weights}


def load_data(options: DemoOptions) -> DemoData:
    """Generate images, or list those in the given folder.

    Raises
    ------
    DatasetError
        The folder has no images, or is not a complete category in MVTec AD's layout.
    ImageNotFoundError
        An image to check does not exist.
    ValueError
        Contradictory options, or test images of only one class.
    """
    if options.data is None:
        if options.check:
            raise ValueError("--check needs --data FOLDER, the normal images to train on")
        return _generated(options)
    folder = Path(os.path.realpath(options.data))
    in_layout = (folder / "train").is_dir() or (folder / "test").is_dir()
    if options.check:
        train, bad = readable(_mvtec(folder, "train").images if in_layout else _images_in(options.data))
        check, bad_ones = readable([image.path for image in NamedImages(options.check)])  # before training
        if not check:
            raise UsageError(f"--check {' '.join(options.check)}: no image that can be read")
        return DemoData(train, check, _names(check), n_unreadable=len(bad) + len(bad_ones))
    if not in_layout:
        _images_in(options.data)  # raises if there are no images at all
        raise ValueError(
            f"--data {options.data} is a folder of images without test/: pass the images to score with --check, "
            "or use a category folder with train/good, test and ground_truth"
        )
    train, test = _mvtec(folder, "train"), _mvtec(folder, "test")
    if len(set(test.labels.tolist())) < 2:
        only = "normal" if test.labels[0] == 1 else "anomalous"
        raise ValueError(f"{folder / 'test'} has only {only} images; the metrics need both normal and anomalous ones")
    normal = [image for image, label in zip(train.images, train.labels, strict=True) if label == 1]
    return DemoData(normal, test.images, test.defect_types, test.labels, test.masks)


def _names(paths: Sequence[Path]) -> list[str]:
    names = [console.shown(path.name) for path in paths]
    return (
        names if len(set(names)) == len(names) else [console.shown(f"{path.parent.name}/{path.name}") for path in paths]
    )


def _generated(options: DemoOptions) -> DemoData:
    from skpbas.datasets import make_inspection_images

    images = make_inspection_images(
        _N_TRAIN + _N_NORMAL, _N_ANOMALOUS, kind=options.kind, size=options.image_size, random_state=options.seed
    )
    return DemoData(
        images.images[:_N_TRAIN],
        images.images[_N_TRAIN:],
        images.defect_types[_N_TRAIN:],
        images.labels[_N_TRAIN:],
        list(images.masks[_N_TRAIN:]),
    )


def _mvtec(folder: Path, split: Any) -> Any:
    from skpbas.datasets import load_mvtec

    return load_mvtec(folder.parent, folder.name, split)


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DatasetError(f"--data {folder}: no such folder")
    categories = sorted(path.parent.name for path in folder.glob("*/train") if path.is_dir())
    images = [] if categories or not images_below(folder) else good_images(folder, "--data ")
    if not images:
        hint = f"use one of its categories: {', '.join(categories)}" if categories else "use a folder of images"
        raise DatasetError(f"--data {folder}: no image files in this folder; {hint}")
    return images


# The detector ---------------------------------------------------------------------------------------------


def fit_detector(data: DemoData, options: DemoOptions) -> PBASDetector:
    """Fit a detector to the training images, with a progress bar."""
    from skpbas import PBASDetector

    epochs: int | str = "auto" if options.data is not None else GENERATED_EPOCHS
    return PBASDetector(
        **choose_network(options),
        image_size=options.image_size,
        max_epochs=epochs if options.epochs is None else options.epochs,
        device=options.device,
        random_state=options.seed,
        verbose=int(console.at_terminal()),
    ).fit(data.train)


def predict(detector: PBASDetector, images: Sequence[Any]) -> Predictions:
    """Return what the detector says of the images, from one pass of the network."""
    results = list(console.progress(detector.score_stream(images), "scoring", len(images)))
    return Predictions.of(results, float(detector.offset_))


# The report -----------------------------------------------------------------------------------------------


def metric_table(
    labels: NDArray[np.int64], masks: Sequence[NDArray[np.bool_] | None], predictions: Predictions
) -> list[str]:
    """Return the lines of the five metrics and of the errors at the detector's threshold."""
    from skpbas.metrics import image_ap, image_auroc, pixel_metrics

    pixels = pixel_metrics(masks, predictions.anomaly_maps)
    values = {
        "image AUROC": image_auroc(labels, -predictions.margins),
        "image AP": image_ap(labels, -predictions.margins),
        "pixel AUROC": pixels["pixel_auroc"],
        "pixel AP": pixels["pixel_ap"],
        "PRO (to FPR 0.3)": pixels["pixel_pro"],
    }
    flagged, normal = ~(predictions.margins >= 0), labels == 1
    rows = [(name, f"{value:.3f}") for name, value in values.items()]
    counts = [
        ("false alarms", f"{int((flagged & normal).sum())} of {int(normal.sum())} normal images"),
        ("misses", f"{int((~flagged & ~normal).sum())} of {int((~normal).sum())} anomalous images"),
    ]
    return [*aligned(rows), "at the detector's threshold:", *aligned(counts)]


def decision_table(names: Sequence[str], predictions: Predictions) -> list[str]:
    """Return one line per image: name, verdict, margin (``decision_function``) and p-value."""
    rows = [
        (name, f"{verdict:10} {margin:9.3f}  {p_value:7.3f}")
        for name, verdict, margin, p_value in zip(
            names, predictions.verdicts, predictions.margins, predictions.p_values, strict=True
        )
    ]
    head = ("image", f"{'verdict':10} {'margin':>9}  p_value")
    return [*aligned([head, *rows]), "a margin below 0 is anomalous"]
