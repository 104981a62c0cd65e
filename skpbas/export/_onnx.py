"""A fitted detector as one ONNX graph."""

from __future__ import annotations

import json
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import torch

import skpbas
from skpbas._decisions.deciding import UNSURE_RATE, check_unsure_rate
from skpbas._inputs.parameters import WholeNumber
from skpbas._training.saving import write_atomically
from skpbas.core.devices import callers_modes_left
from skpbas.core.model import PBASModel
from skpbas.export._network import (
    LARGEST_BATCH,
    LARGEST_SIDE,
    TilesWithRegions,
    Views,
    ViewsWithRegions,
    exportable,
    float32_copy,
    metadata_of,
    pixel_type,
    refusal,
    regions_of,
    takes_ignored,
)
from skpbas.export._onnx_resizing import put_resize_before

_LOWEST_OPSET = 18


def to_onnx(
    detector: Any,
    path: str | PathLike[str],
    *,
    opset: int | None = None,
    unsure_rate: float = UNSURE_RATE,
    ignored: bool | None = None,
) -> None:
    """Write a fitted detector as one ONNX graph, from images to scores and anomaly maps, in float32.

    The graph takes ``images`` (n, H, W, 3), RGB, of any n, H and W: uint8 if all images of ``fit`` were, otherwise
    float32 in [0, 1]. It returns ``score`` (n,), minus ``score_samples``: higher is more anomalous; and ``map``
    (n, h, w), the anomaly maps at model size. Resizing, normalization, all scales and the evidence of whole images are
    part of it.

    With ``tile``, the graph is that of tiles, ``images`` (n, h, w, 3): ``score`` and ``map`` are those of tiles, and
    ``description`` (n, D) is what :class:`~skpbas.runtime.OnnxDetector` needs besides to score the whole image.

    With ``ignored``, a second input ``ignored`` (n, H, W), bool, is True at the pixels that count for nothing, as in
    :func:`skpbas.masks.ignoring`. It has the size of the images; those may be brought to model size beforehand, and one
    pixel of False is enough where all count. ``map`` is 0 where pixels do not count, ``unerased`` (n, h, w) is not, and
    ``counted`` (n, s) has the number of patches that count at each of s scales. ``score`` is NaN where none does. The
    graph of tiles is for :class:`~skpbas.runtime.OnnxDetector`, which fills them beforehand and combines them.

    Thresholds, scores and statistics of the training images, shapes and versions are in the metadata, under "skpbas" as
    JSON.

    Parameters
    ----------
    detector : PBASDetector
        Fitted; it is not changed.
    path : str or Path
        File to write. It is replaced once the new one is complete.
    opset : int or None, default=None
        Version of the ONNX operators, 18 or higher; None: the exporter's choice.
    unsure_rate : float in (0, 0.5], default=0.05
        Of the file's verdicts: see :meth:`PBASDetector.verdicts <skpbas.PBASDetector.verdicts>`.
    ignored : bool or None, default=None
        Whether the graph takes regions that count for nothing, which takes time even where all count; None: if images
        of ``fit`` had some.

    Raises
    ------
    ImportError
        onnx or onnxscript is not installed.
    ValueError
        ``opset``, ``unsure_rate`` or ``ignored`` is none of the above.
    ExportError
        A backbone that cannot be exported; the message names it and the cause.
    StorageError
        The file cannot be written.

    Examples
    --------
    >>> from skpbas import PBASDetector
    >>> from skpbas.datasets import make_inspection_images
    >>> from skpbas.export import to_onnx
    >>> images = make_inspection_images(n_normal=8, n_anomalous=0, size=64, random_state=0).images
    >>> detector = PBASDetector("embedded", image_size=64, max_epochs=2, random_state=0).fit(images)
    >>> to_onnx(detector, "detector.onnx")  # doctest: +SKIP
    """
    now = exportable(detector)
    check_unsure_rate(unsure_rate)
    if opset is not None and (not WholeNumber(_LOWEST_OPSET).is_satisfied_by(opset)):
        raise ValueError(f"opset={opset!r}: expected None, or a whole number, {_LOWEST_OPSET} or higher")
    with_ignored = takes_ignored(now, ignored)
    onnx = _onnx()
    with callers_modes_left(grad=False):
        network = float32_copy(now.model_)
        dtype = pixel_type(now)
        views = _views(network, now, of_bytes=dtype == "uint8", with_ignored=with_ignored)
        proto = _exported(views, now, opset)
    if network.tiling is None:
        reading = now._reading
        put_resize_before(onnx, proto, reading.view_shape, crop=reading.resize == "crop", of_bytes=dtype == "uint8")
    metadata = json.dumps(metadata_of(now, network, dtype, unsure_rate, with_ignored=with_ignored))
    onnx.helper.set_model_props(proto, {"skpbas": metadata})
    proto.producer_name, proto.producer_version = "skpbas", skpbas.__version__
    onnx.checker.check_model(proto)
    write_atomically(Path(path), proto.SerializeToString())


def _onnx() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.parser
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise ImportError(
            f"skpbas.export.to_onnx needs onnx and onnxscript ({error}): pip install skpbas[onnx]"
        ) from error
    return onnx


def _views(network: PBASModel, detector: Any, *, of_bytes: bool, with_ignored: bool) -> Views:
    if not with_ignored:
        return Views(network, of_bytes=of_bytes)
    regions = regions_of(detector, network)
    kind = ViewsWithRegions if network.tiling is None else TilesWithRegions
    return kind(regions, of_bytes=of_bytes)


def _exported(views: Views, detector: Any, opset: int | None) -> Any:
    """Return the graph of views as a ModelProto, or raise an error that names the backbone."""
    height, width = views.model.extractor.image_size
    example = torch.zeros(2, 3, height, width, dtype=torch.float32, device="cpu")
    if views.of_tiles:
        example = example.permute(0, 2, 3, 1).to(torch.uint8 if views.of_bytes else torch.float32)
    n = torch.export.Dim("n", min=1, max=LARGEST_BATCH)
    inputs = {"images" if views.of_tiles else "views": (example.contiguous(), {0: n})}
    if isinstance(views, ViewsWithRegions):
        sides = {i: torch.export.Dim(name, min=1, max=LARGEST_SIDE) for i, name in ((1, "rows"), (2, "columns"))}
        masks = torch.zeros(2, 2 * height + 1, 3 * width + 1, dtype=torch.bool, device="cpu")
        inputs["ignored"] = masks, {0: n, **sides}
    if isinstance(views, TilesWithRegions):
        inputs["ignored"] = torch.zeros(2, height, width, dtype=torch.bool, device="cpu"), {0: n}
        inputs["fill"] = torch.zeros(2, device="cpu"), {0: n}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            program = torch.onnx.export(
                views.eval(),
                tuple(example for example, _ in inputs.values()),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=list(inputs),
                output_names=views.outputs + views.borders,
                dynamic_shapes=tuple(dynamic for _, dynamic in inputs.values()),
            )
        assert program is not None
        proto = program.model_proto
        if not proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param:
            raise ValueError("its operations fix the number of images")
    except Exception as error:
        raise refusal(detector, "torch.onnx", error) from error
    del proto.graph.output[len(views.outputs) :]  # their names stay
    for place in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer, *proto.graph.input):
        place.ClearField("metadata_props")  # lines of source, with the paths of this machine
        place.ClearField("doc_string")
    proto.ClearField("functions")
    return proto
