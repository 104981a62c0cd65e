"""Resizing as ONNX operators: the same bytes as torch's antialiased bilinear interpolation."""

from __future__ import annotations

from typing import Any

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

_NARROW = """
    resize_values_shape = Shape(resize_values)
    resize_lines_shape = Slice(resize_values_shape, resize_axis0, resize_axis3)
    resize_line = Slice(resize_values_shape, resize_axis3, resize_four64)
    resize_n_lines = ReduceProd<keepdims = 1>(resize_lines_shape)
    resize_flat_shape = Concat<axis = 0>(resize_n_lines, resize_line)
    resize_flat = Reshape<allowzero = 1>(resize_values, resize_flat_shape)
    column_turned = Transpose<perm = [1, 0]>(column_weights)
    narrow_flat = MatMul(resize_flat, column_turned)
    narrow_shape = Concat<axis = 0>(resize_lines_shape, column_view)
    narrow = Reshape<allowzero = 1>(narrow_flat, narrow_shape)
"""
"""Older versions of ONNX Runtime multiply no images at all by a matrix only in this way and by the Einsum below."""

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
        resize_four64 = Constant<value = int64[1] {4}>()
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
    body += _NARROW
    body += _ROUND.format(name="narrow") if of_bytes else ""
    body += f'small = Einsum<equation = "hk,nckw->nchw">(row_weights, {"narrow_bytes" if of_bytes else "narrow"})'
    body += _ROUND.format(name="small") if of_bytes else ""
    body += f"resized_views = Identity({'small_bytes' if of_bytes else 'small'})"
    height, width = view_shape
    return _RESIZE.format(dtype="uint8" if of_bytes else "float", height=height, width=width, body=body)


def put_resize_before(onnx: Any, proto: Any, view_shape: tuple[int, int], *, crop: bool, of_bytes: bool) -> None:
    """Put the resizing before a graph of views, in place."""
    resize = onnx.parser.parse_model(_resize_text(view_shape, crop=crop, of_bytes=of_bytes))
    nodes = [*resize.graph.node, *proto.graph.node]
    inputs = [*resize.graph.input, *(given for given in proto.graph.input if given.name != "views")]
    for name, kept in (("node", nodes), ("input", inputs)):
        proto.graph.ClearField(name)
        getattr(proto.graph, name).extend(kept)
