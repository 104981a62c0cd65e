"""A fitted detector as one ONNX file, which runs without torch: see :mod:`skpbas.runtime`."""

from __future__ import annotations

import base64
import copy
import json
import platform
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

import skpbas
from skpbas._decisions.deciding import UNSURE_RATE, check_unsure_rate
from skpbas._inputs.parameters import WholeNumber
from skpbas._training.saving import write_atomically
from skpbas.core.devices import callers_modes_left
from skpbas.core.model import PBASModel
from skpbas.core.whole_images import FULL, HARMLESS, describe
from skpbas.errors import ExportError
from skpbas.runtime import FORMAT

__all__ = ["to_onnx"]

_LOWEST_OPSET = 18
_NOT_SETTINGS = ("device", "memory", "n_jobs", "random_state", "verbose", "weights")  # of the machine, or paths


def to_onnx(
    detector: Any, path: str | PathLike[str], *, opset: int | None = None, unsure_rate: float = UNSURE_RATE
) -> None:
    """Write a fitted detector as one ONNX graph, from images to scores and anomaly maps, in float32.

    The graph takes ``images`` (n, H, W, 3), RGB, of any n, H and W: uint8 if all images of ``fit`` were, otherwise
    float32 in [0, 1]. It returns ``score`` (n,), minus ``score_samples``: higher is more anomalous; and ``map``
    (n, h, w), the anomaly maps at model size. Resizing, normalization, all scales and the evidence of whole images are
    part of it.

    With ``tile``, the graph is that of tiles, ``images`` (n, h, w, 3): ``score`` and ``map`` are those of tiles, and
    ``description`` (n, D) is what :class:`~skpbas.runtime.OnnxDetector` needs besides to score the whole image.

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

    Raises
    ------
    ImportError
        onnx or onnxscript is not installed.
    ExportError
        A backbone that cannot be exported; the message names it and the cause. A detector fitted with ignored regions.
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
    if not hasattr(type(detector), "_level_maps"):
        raise TypeError(f"to_onnx exports a PBASDetector, got {type(detector).__name__}: pass its detector_")
    check_is_fitted(detector)
    check_unsure_rate(unsure_rate)
    if opset is not None and (not WholeNumber(_LOWEST_OPSET).is_satisfied_by(opset)):
        raise ValueError(f"opset={opset!r}: expected None, or a whole number, {_LOWEST_OPSET} or higher")
    onnx = _onnx()
    now = detector._snapshot()
    if now._reading.ignored_share:
        raise ExportError(
            "the detector was fitted on images with ignored regions (skpbas.masks.ignoring), which the graph does not "
            "know: paint the regions in one color instead, in fit and before the exported detector"
        )
    with callers_modes_left(grad=False):
        network = _float32_copy(now.model_)
        reading = now._reading
        dtype = "uint8" if set(now.good_statistics_.kinds) == {"uint8"} else "float32"
        proto = _exported(_Views(network, of_bytes=dtype == "uint8"), now, opset)
    if network.tiling is None:
        _put_resize_before(proto, reading.view_shape, crop=reading.resize == "crop", of_bytes=dtype == "uint8")
    onnx.helper.set_model_props(proto, {"skpbas": json.dumps(_metadata(now, network, dtype, float(unsure_rate)))})
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


# The network ----------------------------------------------------------------------------------------------


class _Views(nn.Module):
    """What the graph computes from views (n, 3, h, w), float32, in [0, 255] or [0, 1], or from tiles (n, h, w, 3)."""

    def __init__(self, model: PBASModel, *, of_bytes: bool) -> None:
        super().__init__()
        self.model, self.of_bytes, self.of_tiles = model, of_bytes, model.tiling is not None

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        if self.of_tiles:
            views = views.permute(0, 3, 1, 2).float()
        images = model.extractor.normalize(views / 255 if self.of_bytes else views)
        if not self.of_tiles:
            return model(images)
        pooled = model.extractor.pool(model.extractor.levels(images))
        scores = model.patch_scorer(pooled)
        return (
            model.patch_scorer.image_scores(scores, model.extractor.grid_shape),
            model.patch_scorer.maps(scores, model.renderer),
            describe(pooled[: model.extractor.n_levels]),
        )


def _float32_copy(model: PBASModel) -> PBASModel:
    copied = copy.deepcopy(model).cpu().eval()
    copied.extractor.precision = copied.patch_scorer.precision = torch.float32
    return copied


def _exported(views: _Views, detector: Any, opset: int | None) -> Any:
    """Return the graph of views as a ModelProto, or raise an error that names the backbone."""
    height, width = views.model.extractor.image_size
    example = torch.zeros(2, 3, height, width, dtype=torch.float32, device="cpu")
    outputs = ["score", "map"]
    if views.of_tiles:
        example = example.permute(0, 2, 3, 1).to(torch.uint8 if views.of_bytes else torch.float32)
        outputs.append("description")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            program = torch.onnx.export(
                views.eval(),
                (example.contiguous(),),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=["images" if views.of_tiles else "views"],
                output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
            )
        assert program is not None
        proto = program.model_proto
        if not proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param:
            raise ValueError("its operations fix the number of images")
    except Exception as error:
        backbone = detector.backbone if isinstance(detector.backbone, str) else type(detector.backbone).__name__
        lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
        raise ExportError(
            f"backbone {backbone}: torch.onnx cannot export it: {type(error.__cause__ or error).__name__}: "
            f"{lines[0] if lines else error!r}"
        ) from error
    for place in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer, *proto.graph.input):
        place.ClearField("metadata_props")  # lines of source, with the paths of this machine
        place.ClearField("doc_string")
    proto.ClearField("functions")
    return proto


# Resizing -------------------------------------------------------------------------------------------------

_AXIS = """
    {axis}_last = Constant<value = int64[1] {{{last}}}>()
    {axis}_length = Gather<axis = 0>(resize_shape, {axis}_last)
    {axis}_from = Cast<to = 11>({axis}_length)
    {axis}_to = Cast<to = 11>({axis}_resized)
    {axis}_scale = Div({axis}_from, {axis}_to)
    {axis}_support = Max({axis}_scale, resize_one)
    {axis}_resized0 = Squeeze({axis}_resized)
    {axis}_length0 = Squeeze({axis}_length)
    {axis}_old = Range(resize_zero64, {axis}_length0, resize_one64)
    {axis}_new = Range(resize_zero64, {axis}_resized0, resize_one64)
    {axis}_old_float = Cast<to = 11>({axis}_old)
    {axis}_new_float = Cast<to = 11>({axis}_new)
    {axis}_old_center = Add({axis}_old_float, resize_half)
    {axis}_new_center = Add({axis}_new_float, resize_half)
    {axis}_center = Mul({axis}_new_center, {axis}_scale)
    {axis}_column = Unsqueeze({axis}_center, resize_axis1)
    {axis}_away = Sub({axis}_old_center, {axis}_column)
    {axis}_distance = Abs({axis}_away)
    {axis}_share = Div({axis}_distance, {axis}_support)
    {axis}_below = Sub(resize_one, {axis}_share)
    {axis}_triangle = Max({axis}_below, resize_zero)
    {axis}_sum = ReduceSum<keepdims = 1>({axis}_triangle, resize_axis1)
    {axis}_normal = Div({axis}_triangle, {axis}_sum)
"""
"""Weights of antialiased bilinear interpolation along an axis, (to, from), in float64: rows of triangles."""

_ROUNDED_AXIS = """
    {axis}_largest = ReduceMax<keepdims = 0>({axis}_normal)
    {axis}_ratio = Div(resize_most, {axis}_largest)
    {axis}_logarithm = Log({axis}_ratio)
    {axis}_exponent = Div({axis}_logarithm, resize_log2)
    {axis}_bits = Floor({axis}_exponent)
    {axis}_unit = Pow(resize_two, {axis}_bits)
    {axis}_units = Mul({axis}_normal, {axis}_unit)
    {axis}_nearly = Add({axis}_units, resize_half)
    {axis}_whole = Floor({axis}_nearly)
    {axis}_exact = Div({axis}_whole, {axis}_unit)
"""
"""As torch rounds the weights of 8-bit images: whole multiples of a power of two, at most 15 bits."""

_CUT = """
    {axis}_rest = Sub({axis}_resized, {axis}_view)
    {axis}_halved = Div({axis}_rest, resize_two64)
    {axis}_odd = Mod({axis}_rest, resize_two64)
    {axis}_odd_half = Mod({axis}_halved, resize_two64)
    {axis}_up = Mul({axis}_odd, {axis}_odd_half)
    {axis}_start = Add({axis}_halved, {axis}_up)
    {axis}_stop = Add({axis}_start, {axis}_view)
    {axis}_seen = Slice({axis}_exact, {axis}_start, {axis}_stop, resize_axis0)
    {axis}_weights = Cast<to = 1>({axis}_seen)
"""
"""Rows of the view: the center; half a pixel goes to the even side, as Python rounds."""

_ROUND = """
    {name}_moved = Add({name}, resize_half32)
    {name}_floor = Floor({name}_moved)
    {name}_bytes = Clip({name}_floor, resize_zero32, resize_white)
"""

_RESIZE = """
<ir_version: 8, opset_import: ["" : 18]>
resize ({dtype}[n, H, W, 3] images) => (float[n, 3, {height}, {width}] views) {{
    resize_shape = Shape(images)
    row_view = Constant<value = int64[1] {{{height}}}>()
    column_view = Constant<value = int64[1] {{{width}}}>()
    resize_axis0 = Constant<value = int64[1] {{0}}>()
    resize_axis1 = Constant<value = int64[1] {{1}}>()
    resize_two64 = Constant<value = int64[1] {{2}}>()
    resize_axis3 = Constant<value = int64[1] {{3}}>()
    resize_sides = Slice(resize_shape, resize_axis1, resize_axis3)
    resize_view = Concat<axis = 0>(row_view, column_view)
    resize_alike = Equal(resize_sides, resize_view)
    resize_alike_int = Cast<to = 7>(resize_alike)
    resize_done = ReduceMin<keepdims = 1>(resize_alike_int)
    resize_images = Slice(resize_shape, resize_axis0, resize_axis1)
    resize_kept = Mul(resize_images, resize_done)
    resize_left = Sub(resize_images, resize_kept)
    resize_planes = Transpose<perm = [0, 3, 1, 2]>(images)
    resize_kept_bytes = Slice(resize_planes, resize_left, resize_images, resize_axis0)
    resize_left_bytes = Slice(resize_planes, resize_axis0, resize_left, resize_axis0)
    resize_kept_shape = Concat<axis = 0>(resize_kept, resize_axis3, resize_view)
    resize_kept_views = Reshape<allowzero = 1>(resize_kept_bytes, resize_kept_shape)
    resize_same = Cast<to = 1>(resize_kept_views)
    resize_values = Cast<to = 1>(resize_left_bytes)
    {body}
    views = Concat<axis = 0>(resize_same, resized_views)
}}
"""
"""Images that have the size of the view already are left out of the products, which then have no rows.

An ``If`` would say it more plainly, but OpenVINO 2026.4 returns noise from it in the first pass of a new shape.
"""


def _resize_text(view_shape: tuple[int, int], *, crop: bool, of_bytes: bool) -> str:
    """Return the resizing of :meth:`Geometry.view` as text of :mod:`onnx.parser`.

    Columns first, rounded in between for bytes: so does torch. Bytes are exact; other values equal but for rounding.
    """
    constants = """
        resize_one = Constant<value = double {1.0}>()
        resize_zero = Constant<value = double {0.0}>()
        resize_half = Constant<value = double {0.5}>()
        resize_two = Constant<value = double {2.0}>()
        resize_log2 = Log(resize_two)
        resize_most = Constant<value = double {32767.5}>()
        resize_zero64 = Constant<value = int64 {0}>()
        resize_one64 = Constant<value = int64 {1}>()
        resize_half32 = Constant<value = float {0.5}>()
        resize_zero32 = Constant<value = float {0.0}>()
        resize_white = Constant<value = float {255.0}>()
    """
    whole = """
        row_resized = Identity(row_view)
        column_resized = Identity(column_view)
    """
    cropped = """
        resize_height = Slice(resize_shape, resize_axis1, resize_two64)
        resize_width = Slice(resize_shape, resize_two64, resize_axis3)
        row_area = Mul(resize_height, column_view)
        row_side = Div(row_area, resize_width)
        row_resized = Max(row_side, row_view)
        column_area = Mul(resize_width, row_view)
        column_side = Div(column_area, resize_height)
        column_resized = Max(column_side, column_view)
    """
    body = constants + (cropped if crop else whole)
    for axis, last in (("row", 1), ("column", 2)):
        body += _AXIS.format(axis=axis, last=last)
        body += _ROUNDED_AXIS.format(axis=axis) if of_bytes else f"{axis}_exact = Identity({axis}_normal)"
        body += _CUT.format(axis=axis)
    body += """
        column_turned = Transpose<perm = [1, 0]>(column_weights)
        narrow = MatMul(resize_values, column_turned)
    """
    body += _ROUND.format(name="narrow") if of_bytes else ""
    body += f"small = MatMul(row_weights, {'narrow_bytes' if of_bytes else 'narrow'})"
    body += _ROUND.format(name="small") if of_bytes else ""
    body += f"resized_views = Identity({'small_bytes' if of_bytes else 'small'})"
    height, width = view_shape
    return _RESIZE.format(dtype="uint8" if of_bytes else "float", height=height, width=width, body=body)


def _put_resize_before(proto: Any, view_shape: tuple[int, int], *, crop: bool, of_bytes: bool) -> None:
    """Put the resizing before a graph of views, in place."""
    resize = _onnx().parser.parse_model(_resize_text(view_shape, crop=crop, of_bytes=of_bytes))
    nodes = [*resize.graph.node, *proto.graph.node]
    for name, kept in (("node", nodes), ("input", list(resize.graph.input))):
        proto.graph.ClearField(name)
        getattr(proto.graph, name).extend(kept)


# Metadata -------------------------------------------------------------------------------------------------


def _metadata(detector: Any, network: PBASModel, dtype: str, unsure_rate: float) -> dict[str, Any]:
    judge, reading, tiling = detector._judge(unsure_rate), detector._reading, network.tiling
    settings = {
        name: value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
        for name, value in detector.get_params(deep=False).items()
        if name not in _NOT_SETTINGS and name != "backbone"
    }
    backbone = detector.backbone if isinstance(detector.backbone, str) else type(detector.backbone).__name__
    metadata = {
        "format": FORMAT,
        "dtype": dtype,
        "resize": reading.resize,
        "map_shape": list(reading.view_shape),
        "smallest_side": network.extractor.stride,
        "offset": float(judge.offset),
        "unsure_offset": float(judge.unsure_offset),
        "unsure_rate": unsure_rate,
        "map_threshold": float(detector.map_threshold_),
        "normal_scores": judge.normal_scores.tolist(),
        "aspect": reading.aspect,
        "good_statistics": reading.good.as_note(),
        "versions": {"skpbas": skpbas.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "settings": {"backbone": backbone, **settings},
    }
    if tiling is not None:
        metadata["tiles"] = {
            "shape": list(tiling.tile_shape),
            "tops": tiling.tops,
            "lefts": tiling.lefts,
            "row_weights": _packed(tiling.row_weights),
            "column_weights": _packed(tiling.column_weights),
        }
        if (whole := network.whole_images) is not None:
            metadata["whole_images"] = {
                "center": _packed(whole.center),
                "known": _packed(whole.known),
                "free": HARMLESS * float(whole.radius),
                "slope": float(whole.unit) / ((FULL - HARMLESS) * float(whole.radius)),
            }
    return metadata


def _packed(values: Tensor) -> dict[str, Any]:
    """Return float32 values as JSON can hold them."""
    array = values.detach().numpy().astype("<f4")
    return {"shape": list(array.shape), "float32": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()}
