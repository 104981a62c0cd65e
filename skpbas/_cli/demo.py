"""The command ``python -m skpbas demo``: images in, five metrics and one picture out.

Heavy modules are imported inside functions, so that ``--help`` is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from skpbas._cli.colormap import color_map, overlay
from skpbas.errors import DatasetError

if TYPE_CHECKING:
    from skpbas import PBASDetector

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

Echo = Callable[[str], object]


@dataclass(frozen=True)
class DemoOptions:
    """Settings of the demo, named as on the command line.

    Attributes
    ----------
    data : Path or None
        Category folder in MVTec AD's layout, or a folder of normal images; None: generate images.
    check : tuple of Path
        Images to score with a detector fitted to ``data``.
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
    """

    data: Path | None = None
    check: tuple[Path, ...] = ()
    kind: str = "hex_nut"
    backbone: str | None = None
    weights: str | None = None
    image_size: int = 256
    epochs: int | None = None
    device: str = "auto"
    seed: int = 0
    output: Path = Path("skpbas-demo")


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
    """

    train: Sequence[Any]
    test: Sequence[Any]
    names: list[str]
    labels: NDArray[np.int64] | None = None
    masks: list[Any] | None = None


@dataclass(frozen=True)
class Predictions:
    """Predictions for the test images.

    Attributes
    ----------
    margins : ndarray of shape (n_test,)
        ``decision_function``: negative for anomalous images.
    anomaly_maps : ndarray of shape (n_test, H, W)
        At model size.
    """

    margins: NDArray[np.float64]
    anomaly_maps: NDArray[np.float32]


def run_demo(options: DemoOptions, echo: Echo = print) -> Path:
    """Run the demo.

    Parameters
    ----------
    options : DemoOptions
    echo : callable
        Called with each line of the report.

    Returns
    -------
    Path
        Path of the picture.

    Raises
    ------
    SkpbasError, ValueError
        Unusable images, weights or settings.
    """
    from skpbas.masks import to_map_size

    network = choose_network(options)
    if network["weights"] is None:
        echo(_RANDOM_FEATURES.format(**network))
    data = load_data(options)
    folder = _writable_folder(options.output)
    echo(f"training on {len(data.train)} normal images, then scoring {len(data.test)}")
    detector = fit_detector(data, options)
    predictions = predict(detector, data.test)
    masks = None if data.masks is None else to_map_size(data.masks, data.test, detector)
    if data.labels is None or masks is None:
        report = decision_table(data.names, predictions.margins)
    else:
        report = metric_table(data.labels, masks, predictions)
    for line in report:
        echo(line)
    path = folder / PICTURE_NAME
    shown = list(range(len(data.test))) if data.labels is None else rows_to_show(data.names, data.labels)
    draw_picture(detector, data, predictions, masks, shown).save(path)
    echo(
        f"wrote {path}: {len(shown)} images with "
        + ("anomaly map and overlay" if masks is None else "mask, anomaly map and overlay")
    )
    return path


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
    folder = options.data.resolve()
    in_layout = (folder / "train").is_dir() or (folder / "test").is_dir()
    if options.check:
        from skpbas._inputs.decoding import check_regular_file

        for path in options.check:  # fail before training
            check_regular_file(path, f"--check {path}")
        train = _mvtec(folder, "train").images if in_layout else _images_in(options.data)
        return DemoData(train, list(options.check), _names(options.check))
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
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [f"{path.parent.name}/{path.name}" for path in paths]


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
    from skpbas.datasets import list_images

    if not folder.is_dir():
        raise DatasetError(f"--data {folder}: no such folder")
    try:
        return list_images(folder)
    except DatasetError as error:
        categories = sorted(path.parent.name for path in folder.glob("*/train") if path.is_dir())
        hint = f"use one of its categories: {', '.join(categories)}" if categories else "use a folder of images"
        raise DatasetError(f"--data {folder}: {error}; {hint}") from None


def _writable_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {folder}: cannot create the folder ({error})") from error
    return folder


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
        verbose=1,
    ).fit(data.train)


def predict(detector: PBASDetector, images: Sequence[Any]) -> Predictions:
    """Return margins and anomaly maps from one pass of the network."""
    from skpbas._features.progress import progress_bar

    scores, anomaly_maps = [], []
    with progress_bar(len(images), "scoring", "image", True) as bar:
        for score, anomaly_map in detector.iter_scores_and_maps(images):
            scores.append(score)
            anomaly_maps.append(anomaly_map)
            bar.update()
    return Predictions(np.array(scores) - detector.offset_, np.stack(anomaly_maps))


# The report -----------------------------------------------------------------------------------------------


def metric_table(
    labels: NDArray[np.int64], masks: Sequence[NDArray[np.bool_] | None], predictions: Predictions
) -> list[str]:
    """Return the lines of the five metrics and of the errors at the detector's threshold."""
    from skpbas.metrics import image_ap, image_auroc, pixel_metrics

    pixels = pixel_metrics(masks, list(predictions.anomaly_maps))
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
    return [*_aligned(rows), "at the detector's threshold:", *_aligned(counts)]


def decision_table(names: Sequence[str], margins: NDArray[np.float64]) -> list[str]:
    """Return one line per image: name, decision and margin (``decision_function``)."""
    rows = [(name, f"{_decision(margin):10} {margin:9.3f}") for name, margin in zip(names, margins, strict=True)]
    return [*_aligned([("image", f"{'decision':10} {'margin':>9}"), *rows]), "a margin below 0 is anomalous"]


def _decision(margin: float) -> str:
    return "normal" if margin >= 0 else "anomalous"


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:{width}}  {value}" for name, value in rows]


# The picture ----------------------------------------------------------------------------------------------

_TILE = 192
_GAP = 6
_CAPTION_WIDTH = 150
_HEADER_HEIGHT = 26
_BACKGROUND, _TEXT_COLOR = (255, 255, 255), (30, 30, 30)


def rows_to_show(names: Sequence[str], labels: NDArray[np.int64], max_rows: int = 6) -> list[int]:
    """Select test images for the picture: one of each defect type in turn, then a normal one.

    Parameters
    ----------
    names : sequence of str
        Defect type of each image.
    labels : ndarray of shape (n,)
        +1 normal, -1 anomalous.
    max_rows : int
        Largest number of images, including the normal one.

    Returns
    -------
    list of int
        Indices of the images.
    """
    queues: dict[str, list[int]] = {}
    for index in np.flatnonzero(labels == -1).tolist():
        queues.setdefault(names[index], []).append(index)
    longest = max(map(len, queues.values()), default=0)
    in_turn = [queue[turn] for turn in range(longest) for queue in queues.values() if turn < len(queue)]
    return sorted(in_turn[: max_rows - 1]) + np.flatnonzero(labels == 1)[:1].tolist()


def draw_picture(
    detector: PBASDetector,
    data: DemoData,
    predictions: Predictions,
    masks: Sequence[NDArray[np.bool_] | None] | None,
    shown: Sequence[int],
) -> Image.Image:
    """Draw one row per image: the image, its mask if there are masks, its anomaly map and an overlay.

    All rows share one color scale, from the median to the maximum of all test anomaly maps.
    """
    low, high = float(np.median(predictions.anomaly_maps)), float(predictions.anomaly_maps.max())
    titles = ["image", *([] if masks is None else ["mask"]), f"anomaly map, {low:.2f} to {high:.2f}", "overlay"]
    views = _views(detector, [data.test[i] for i in shown])
    height, width = detector.map_shape_
    size = (_TILE, max(1, round(_TILE * height / width)))
    sheet = Image.new(
        "RGB",
        (_CAPTION_WIDTH + len(titles) * (size[0] + _GAP), _HEADER_HEIGHT + len(shown) * (size[1] + _GAP)),
        _BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((_CAPTION_WIDTH + column * (size[0] + _GAP), 6), title, _TEXT_COLOR, font=_font(14))
    for row, (index, view) in enumerate(zip(shown, views, strict=True)):
        top = _HEADER_HEIGHT + row * (size[1] + _GAP)
        anomaly_map, margin = predictions.anomaly_maps[index], float(predictions.margins[index])
        tiles = [view, color_map(anomaly_map, low, high), overlay(view, anomaly_map, low, high)]
        if masks is not None:
            mask = masks[index]
            tiles.insert(
                1, np.zeros_like(view) if mask is None else np.repeat(np.uint8(255) * mask[..., None], 3, axis=2)
            )
        for column, tile in enumerate(tiles):
            picture = Image.fromarray(tile).resize(size, Image.Resampling.BILINEAR)
            sheet.paste(picture, (_CAPTION_WIDTH + column * (size[0] + _GAP), top))
        draw.text((6, top + 4), _shortened(data.names[index]), _TEXT_COLOR, font=_font(14))
        draw.text(
            (6, top + 26), f"says: {_decision(margin)}\nmargin {margin:.2f}", _TEXT_COLOR, font=_font(12), spacing=4
        )
    return sheet


def _views(detector: PBASDetector, images: Sequence[Any]) -> list[NDArray[np.uint8]]:
    """Return the images as seen by the network, (H, W, 3)."""
    from skpbas._inputs.images import ImageSequence, check_images

    sequence = ImageSequence(check_images(images), image_size=detector.map_shape_, resize=detector.resize, smallest=1)
    views = [sequence.load(i)[0].movedim(0, -1).numpy() for i in range(len(sequence))]
    return [view if view.dtype == np.uint8 else np.round(255 * view).astype(np.uint8) for view in views]


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _shortened(name: str, max_length: int = 18) -> str:
    return name if len(name) <= max_length else name[: max_length - 3] + "..."
