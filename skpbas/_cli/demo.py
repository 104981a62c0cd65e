"""The demonstration behind ``python -m skpbas demo``: images in, five metrics and one picture out.

The package's own heavy modules are imported where they are used, so that ``--help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from skpbas._cli.colormap import colour_map, overlay
from skpbas.errors import DatasetError

if TYPE_CHECKING:
    from skpbas import PBASDetector

DEFAULT_NETWORK: dict[str, Any] = {"backbone": "embedded", "weights": "imagenet"}
"""What the demo runs on where ``--backbone`` is not given: the one place to change it."""

GENERATED_EPOCHS = 60
"""Passes over the generated images; the user's own get the estimator's "auto"."""

PICTURE_NAME = "demo.png"

_N_TRAIN, _N_GOOD, _N_DEFECTIVE = 40, 12, 15
_RANDOM_FEATURES = (
    "random features: {backbone} without pretrained weights, which shows the steps and not the accuracy; "
    "pass --backbone and --weights for real ones"
)

Say = Callable[[str], object]


@dataclass(frozen=True)
class DemoOptions:
    """The demo's settings, named as on the command line.

    Attributes
    ----------
    data : Path or None
        A category's folder in MVTec AD's layout, or a folder of good images; None: images are generated.
    check : tuple of Path
        Images to judge by the good ones of ``data``.
    kind : str
        Product to generate, one of :data:`skpbas.datasets.INSPECTION_KINDS`.
    backbone : str or None
        None: :data:`DEFAULT_NETWORK`.
    weights : str or None
        "imagenet", a state dict's path or "none" for random ones; None: "imagenet" with a backbone.
    image_size : int
        Side of the network's input, pixels.
    epochs : int or None
        Passes over the good images; None: :data:`GENERATED_EPOCHS` for generated images, else "auto".
    device : str
        As the estimator's.
    seed : int
        Of the generated images and of the detector.
    output : Path
        Folder for the picture; made where it is missing.
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
    """Images to learn from and images to judge.

    Attributes
    ----------
    train : sequence of images
        Good ones.
    test : sequence of images
    names : list of str
        What the picture calls each test image.
    labels : ndarray of shape (n_test,) or None
        +1 good, -1 defective; None where the truth is unknown.
    masks : list or None
        Of each test image an array, a path, or None for a good one.
    """

    train: Sequence[Any]
    test: Sequence[Any]
    names: list[str]
    labels: NDArray[np.int64] | None = None
    masks: list[Any] | None = None


@dataclass(frozen=True)
class Judged:
    """What the detector says of the test images.

    Attributes
    ----------
    margins : ndarray of shape (n_test,)
        ``decision_function``: below 0 is anomalous.
    maps : ndarray of shape (n_test, H, W)
        Anomaly maps at model size.
    """

    margins: NDArray[np.float64]
    maps: NDArray[np.float32]


def run_demo(options: DemoOptions, say: Say = print) -> Path:
    """Run the demo from images to the picture.

    Parameters
    ----------
    options : DemoOptions
    say : callable
        Gets the lines of the report.

    Returns
    -------
    Path
        Of the picture.

    Raises
    ------
    SkpbasError, ValueError
        Images, weights or settings cannot be used; the message says why.
    """
    from skpbas.masks import to_map_size

    network = choose_network(options)
    if network["weights"] is None:
        say(_RANDOM_FEATURES.format(**network))
    data = load_data(options)
    folder = _writable_folder(options.output)
    say(f"learning from {len(data.train)} good images, then judging {len(data.test)}")
    detector = fit_detector(data, options)
    judged = judge(detector, data.test)
    masks = None if data.masks is None else to_map_size(data.masks, data.test, detector)
    if data.labels is None or masks is None:
        report = decision_table(data.names, judged.margins)
    else:
        report = metric_table(data.labels, masks, judged)
    for line in report:
        say(line)
    path = folder / PICTURE_NAME
    shown = list(range(len(data.test))) if data.labels is None else rows_to_show(data.names, data.labels)
    draw_picture(detector, data, judged, masks, shown).save(path)
    say(f"wrote {path}: {len(shown)} images with " + ("map and overlay" if masks is None else "mask, map and overlay"))
    return path


# Settings and data ----------------------------------------------------------------------------------------


def choose_network(options: DemoOptions) -> dict[str, Any]:
    """Return the estimator's ``backbone`` and ``weights``.

    Raises
    ------
    ValueError
        Weights without a backbone.
    """
    if options.backbone is None:
        if options.weights is not None:
            raise ValueError(f"--weights {options.weights} needs --backbone: the network which the weights belong to")
        return dict(DEFAULT_NETWORK)
    weights = options.weights or "imagenet"
    return {"backbone": options.backbone, "weights": None if weights == "none" else weights}


def load_data(options: DemoOptions) -> DemoData:
    """Generate images, or list those of the user's folder.

    Raises
    ------
    DatasetError
        The folder holds no images, or is not a category of MVTec AD's layout in full.
    ImageNotFoundError
        An image to check is not there.
    ValueError
        The options contradict each other, or the test images are all good or all defective.
    """
    if options.data is None:
        if options.check:
            raise ValueError("--check needs --data FOLDER: the good images to learn from")
        return _generated(options)
    folder = options.data.resolve()
    in_layout = (folder / "train").is_dir() or (folder / "test").is_dir()
    if options.check:
        from skpbas._inputs.decoding import check_regular_file

        for path in options.check:  # before training, not after it
            check_regular_file(path, f"--check {path}")
        train = _mvtec(folder, "train").images if in_layout else _images_in(options.data)
        return DemoData(train, list(options.check), _names(options.check))
    if not in_layout:
        _images_in(options.data)  # first of all: is there anything?
        raise ValueError(
            f"--data {options.data} is a folder of images without test/: name the images to judge with --check, "
            "or give a category's folder with train/good, test and ground_truth"
        )
    train, test = _mvtec(folder, "train"), _mvtec(folder, "test")
    if len(set(test.labels.tolist())) < 2:
        only = "good" if test.labels[0] == 1 else "defective"
        raise ValueError(f"{folder / 'test'} holds {only} images only; the metrics need good and defective ones")
    good = [image for image, label in zip(train.images, train.labels, strict=True) if label == 1]
    return DemoData(good, test.images, test.defect_types, test.labels, test.masks)


def _names(paths: Sequence[Path]) -> list[str]:
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [f"{path.parent.name}/{path.name}" for path in paths]


def _generated(options: DemoOptions) -> DemoData:
    from skpbas.datasets import make_inspection_images

    images = make_inspection_images(
        _N_TRAIN + _N_GOOD, _N_DEFECTIVE, kind=options.kind, size=options.image_size, random_state=options.seed
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
        way_out = f"give one of its categories: {', '.join(categories)}" if categories else "give a folder of images"
        raise DatasetError(f"--data {folder}: {error}; {way_out}") from None


def _writable_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {folder}: the folder cannot be made ({error})") from error
    return folder


# The detector ---------------------------------------------------------------------------------------------


def fit_detector(data: DemoData, options: DemoOptions) -> PBASDetector:
    """Fit a detector, with its progress bar, to the training images."""
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


def judge(detector: PBASDetector, images: Sequence[Any]) -> Judged:
    """Score and localise images in one pass of the network."""
    from skpbas._features.progress import progress_bar

    scores, maps = [], []
    with progress_bar(len(images), "judging", "image", True) as bar:
        for score, anomaly_map in detector.iter_scores_and_maps(images):
            scores.append(score)
            maps.append(anomaly_map)
            bar.update()
    return Judged(np.array(scores) - detector.offset_, np.stack(maps))


# The report -----------------------------------------------------------------------------------------------


def metric_table(labels: NDArray[np.int64], masks: Sequence[NDArray[np.bool_] | None], judged: Judged) -> list[str]:
    """Return the lines of the five metrics and of the decisions at the detector's own threshold."""
    from skpbas.metrics import image_ap, image_auroc, pixel_metrics

    pixels = pixel_metrics(masks, list(judged.maps))
    values = {
        "image AUROC": image_auroc(labels, -judged.margins),
        "image AP": image_ap(labels, -judged.margins),
        "pixel AUROC": pixels["pixel_auroc"],
        "pixel AP": pixels["pixel_ap"],
        "PRO (to FPR 0.3)": pixels["pixel_pro"],
    }
    flagged, good = judged.margins < 0, labels == 1
    rows = [(name, f"{value:.3f}") for name, value in values.items()]
    counts = [
        ("false alarms", f"{int((flagged & good).sum())} of {int(good.sum())} good images"),
        ("misses", f"{int((~flagged & ~good).sum())} of {int((~good).sum())} defective images"),
    ]
    return [*_aligned(rows), "at the detector's own threshold:", *_aligned(counts)]


def decision_table(names: Sequence[str], margins: NDArray[np.float64]) -> list[str]:
    """Return a line for each checked image: its name, the decision and ``decision_function``."""
    rows = [(name, f"{_decision(margin):10} {margin:9.3f}") for name, margin in zip(names, margins, strict=True)]
    return [*_aligned([("image", f"{'decision':10} {'score':>9}"), *rows]), "a score below 0 is anomalous"]


def _decision(margin: float) -> str:
    return "anomalous" if margin < 0 else "good"


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:{width}}  {value}" for name, value in rows]


# The picture ----------------------------------------------------------------------------------------------

_TILE = 192
_GAP = 6
_CAPTION_WIDTH = 150
_HEAD_HEIGHT = 26
_PAPER, _INK = (255, 255, 255), (30, 30, 30)


def rows_to_show(names: Sequence[str], labels: NDArray[np.int64], most: int = 6) -> list[int]:
    """Choose test images for the picture: one of each defect in turn, then a good one last.

    Parameters
    ----------
    names : sequence of str
        Defect of each image.
    labels : ndarray of shape (n,)
        +1 good, -1 defective.
    most : int
        Rows at most, the good one included.

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
    return sorted(in_turn[: most - 1]) + np.flatnonzero(labels == 1)[:1].tolist()


def draw_picture(
    detector: PBASDetector,
    data: DemoData,
    judged: Judged,
    masks: Sequence[NDArray[np.bool_] | None] | None,
    shown: Sequence[int],
) -> Image.Image:
    """Draw one row an image: the image, its mask where there are masks, its map and both laid over each other.

    One colour scale, from the median of all test maps to their highest value, serves every row.
    """
    low, high = float(np.median(judged.maps)), float(judged.maps.max())
    heads = ["image", *([] if masks is None else ["mask"]), f"map, {low:.2f} to {high:.2f}", "overlay"]
    views = _views(detector, [data.test[i] for i in shown])
    height, width = detector.map_shape_
    size = (_TILE, max(1, round(_TILE * height / width)))
    sheet = Image.new(
        "RGB",
        (_CAPTION_WIDTH + len(heads) * (size[0] + _GAP), _HEAD_HEIGHT + len(shown) * (size[1] + _GAP)),
        _PAPER,
    )
    pen = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        pen.text((_CAPTION_WIDTH + column * (size[0] + _GAP), 6), head, _INK, font=_font(14))
    for row, (index, view) in enumerate(zip(shown, views, strict=True)):
        top = _HEAD_HEIGHT + row * (size[1] + _GAP)
        anomaly_map, margin = judged.maps[index], float(judged.margins[index])
        tiles = [view, colour_map(anomaly_map, low, high), overlay(view, anomaly_map, low, high)]
        if masks is not None:
            mask = masks[index]
            tiles.insert(
                1, np.zeros_like(view) if mask is None else np.repeat(np.uint8(255) * mask[..., None], 3, axis=2)
            )
        for column, tile in enumerate(tiles):
            picture = Image.fromarray(tile).resize(size, Image.Resampling.BILINEAR)
            sheet.paste(picture, (_CAPTION_WIDTH + column * (size[0] + _GAP), top))
        pen.text((6, top + 4), _shortened(data.names[index]), _INK, font=_font(14))
        pen.text((6, top + 26), f"says: {_decision(margin)}\nscore {margin:.2f}", _INK, font=_font(12), spacing=4)
    return sheet


def _views(detector: PBASDetector, images: Sequence[Any]) -> list[NDArray[np.uint8]]:
    """Return the images as the network sees them, (H, W, 3)."""
    from skpbas._inputs.images import ImageSequence, check_images

    sequence = ImageSequence(check_images(images), image_size=detector.map_shape_, resize=detector.resize, smallest=1)
    views = [sequence.load(i)[0].movedim(0, -1).numpy() for i in range(len(sequence))]
    return [view if view.dtype == np.uint8 else np.round(255 * view).astype(np.uint8) for view in views]


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _shortened(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 3] + "..."
