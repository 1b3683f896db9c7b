"""Fan-beam kernels for CPUs, compiled by numba. Serial, GIL released: the caller's threads split the range.

The geometry of a ray is the same for every slice, so all arrays hold W slices (or rotated copies of slices) side by
side in their last axis: an index and two weights are computed once and used for W contiguous values. Arrays are flat:
``image[(row * (columns + 2) + 1 + column) * W]`` with a column of zeros to either side where an index may step out,
``sinogram[(view * (cells + 2) + 1 + cell) * W]`` likewise.

Only rays within 45 degrees of the rows' normal are traced (Joseph's method steps from row to row); the caller turns
the image by 90 degrees for the others. `lanes` is a tuple of W entries: its type tells the compiler W.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

# Block sizes keep the rows or views in work within the second-level cache.
VIEW_BLOCK = 8
ROW_BLOCK = 8


def _vector_pointer(context, builder, array_type, array, index, width):
    """Pointer to `width` values of a flat array, starting at `index`, as one vector."""
    struct = context.make_array(array_type)(context, builder, array)
    element = context.get_data_type(array_type.dtype)
    pointer = cgutils.gep_inbounds(builder, struct.data, index)
    return builder.bitcast(pointer, ir.VectorType(element, width).as_pointer())


def _broadcast(builder, value, width):
    vector_type = ir.VectorType(value.type, width)
    single = builder.insert_element(ir.Constant(vector_type, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
    return builder.shuffle_vector(single, ir.Constant(vector_type, ir.Undefined), mask)


def _two_taps(gather: bool):
    """Code generator of :func:`gather_two` (gather) or :func:`scatter_two`."""

    def generate(context, builder, signature, arguments):
        out, out_at, source, source_at, first, second, _ = arguments
        out_type, _, source_type, _, _, _, lanes_type = signature.args
        width = lanes_type.count
        align = out_type.dtype.bitwidth // 8
        fused = ("contract",)
        step = ir.Constant(out_at.type, width)
        first, second = _broadcast(builder, first, width), _broadcast(builder, second, width)

        def add_to(index, terms):
            pointer = _vector_pointer(context, builder, out_type, out, index, width)
            total = builder.load(pointer, align=align)
            for weight, value in terms:
                total = builder.fadd(total, builder.fmul(weight, value, flags=fused), flags=fused)
            builder.store(total, pointer, align=align)

        def value_at(index):
            pointer = _vector_pointer(context, builder, source_type, source, index, width)
            return builder.load(pointer, align=align)

        if gather:
            add_to(out_at, [(first, value_at(source_at)), (second, value_at(builder.add(source_at, step)))])
        else:
            value = value_at(source_at)
            add_to(out_at, [(first, value)])
            add_to(builder.add(out_at, step), [(second, value)])
        return context.get_dummy_value()

    return generate


def _tap_signature(out, out_at, source, source_at, first, second, lanes):
    return types.void(out, types.intp, source, types.intp, out.dtype, out.dtype, lanes)


@intrinsic
def gather_two(typingctx, out, out_at, source, source_at, first, second, lanes):
    """``out[out_at:][:W] += first * source[source_at:][:W] + second * source[source_at + W:][:W]``"""
    return _tap_signature(out, out_at, source, source_at, first, second, lanes), _two_taps(gather=True)


@intrinsic
def scatter_two(typingctx, out, out_at, source, source_at, first, second, lanes):
    """``out[out_at:][:W] += first * source[source_at:][:W]``, and ``second`` times the same to ``out[out_at + W:]``."""
    return _tap_signature(out, out_at, source, source_at, first, second, lanes), _two_taps(gather=False)


@njit(nogil=True, cache=True, inline="always")
def _first_at_least(slopes, low, high, offset, scale, bound):
    """First cell of [low, high) with ``offset + scale * slope >= bound``; slopes grow."""
    while low < high:
        middle = (low + high) // 2
        if offset + scale * slopes[middle] >= bound:
            high = middle
        else:
            low = middle + 1
    return low


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"})
def _slopes(sin_fan, cos_fan, sin_view, cos_view, low, high, slopes, lengths, pixel_size):
    """Columns a ray crosses per row, and its path in mm per row, for the cells [low, high) of a view."""
    for c in range(low, high):
        sine = sin_fan[c] * cos_view - cos_fan[c] * sin_view
        cosine = cos_fan[c] * cos_view + sin_fan[c] * sin_view
        slopes[c] = sine / cosine
        lengths[c] = pixel_size / cosine


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz"})
def _ray_taps(slopes, low, high, offset, scale, index, weight):
    """Where the rays [low, high) cross a row: index of the left pixel in the padded row, weight of the right one."""
    for c in range(low, high):
        at = offset + scale * slopes[c]
        left = np.int32(at)
        index[c] = left
        weight[c] = at - left


@njit(nogil=True, cache=True, error_model="numpy")
def project(image, sinogram, shape, sin_fan, cos_fan, views, ranges, x_first, rows_y, pixel_size, start, stop, lanes):
    """Add line integrals of the rays in `ranges` for the views [start, stop).

    `views`: rows of (sine, cosine, source x, source y). `ranges`: first and end cell of each view.
    """
    cells, rows, columns = shape
    width = len(lanes)
    one = sin_fan.dtype.type(1)
    slopes = np.empty((VIEW_BLOCK, cells), sin_fan.dtype)
    lengths = np.empty((VIEW_BLOCK, cells), sin_fan.dtype)
    index = np.empty(cells, np.int32)
    weight = np.empty(cells, sin_fan.dtype)
    for block in range(start, stop, VIEW_BLOCK):
        end = min(block + VIEW_BLOCK, stop)
        for v in range(block, end):
            _slopes(
                sin_fan, cos_fan, views[v, 0], views[v, 1], ranges[v, 0], ranges[v, 1],
                slopes[v - block], lengths[v - block], pixel_size,
            )  # fmt: skip
        for row_block in range(0, rows, ROW_BLOCK):
            for v in range(block, end):
                slope = slopes[v - block]
                offset = (views[v, 2] - x_first) / pixel_size + one
                for row in range(row_block, min(row_block + ROW_BLOCK, rows)):
                    scale = (rows_y[row] - views[v, 3]) / pixel_size
                    if scale <= 0:  # behind the source
                        continue
                    low = _first_at_least(slope, ranges[v, 0], ranges[v, 1], offset, scale, 0)
                    high = _first_at_least(slope, low, ranges[v, 1], offset, scale, columns + 1)
                    _ray_taps(slope, low, high, offset, scale, index, weight)
                    line = row * (columns + 2)
                    out = v * cells
                    for c in range(low, high):
                        right = weight[c]
                        gather_two(
                            sinogram, (out + c) * width, image, (line + index[c]) * width, one - right, right, lanes
                        )
        for v in range(block, end):
            for c in range(ranges[v, 0], ranges[v, 1]):
                length = lengths[v - block, c]
                for k in range(width):
                    sinogram[(v * cells + c) * width + k] *= length


@njit(nogil=True, cache=True, error_model="numpy")
def project_transpose(
    image, sinogram, shape, sin_fan, cos_fan, views, ranges, x_first, rows_y, pixel_size, start, stop, lanes
):
    """Transpose of :func:`project`, for the image rows [start, stop)."""
    cells, _, columns = shape
    width = len(lanes)
    one = sin_fan.dtype.type(1)
    slopes = np.empty((VIEW_BLOCK, cells), sin_fan.dtype)
    lengths = np.empty(cells, sin_fan.dtype)
    index = np.empty(cells, np.int32)
    weight = np.empty(cells, sin_fan.dtype)
    scaled = np.empty(VIEW_BLOCK * cells * width, sinogram.dtype)
    for block in range(0, views.shape[0], VIEW_BLOCK):
        end = min(block + VIEW_BLOCK, views.shape[0])
        for v in range(block, end):
            first, last = ranges[v, 0], ranges[v, 1]
            slope = slopes[v - block]
            _slopes(sin_fan, cos_fan, views[v, 0], views[v, 1], first, last, slope, lengths, pixel_size)
            for c in range(first, last):
                source, target = (v * cells + c) * width, ((v - block) * cells + c) * width
                for k in range(width):
                    scaled[target + k] = sinogram[source + k] * lengths[c]
        for row_block in range(start, stop, ROW_BLOCK):
            for v in range(block, end):
                slope = slopes[v - block]
                offset = (views[v, 2] - x_first) / pixel_size + one
                for row in range(row_block, min(row_block + ROW_BLOCK, stop)):
                    scale = (rows_y[row] - views[v, 3]) / pixel_size
                    if scale <= 0:
                        continue
                    low = _first_at_least(slope, ranges[v, 0], ranges[v, 1], offset, scale, 0)
                    high = _first_at_least(slope, low, ranges[v, 1], offset, scale, columns + 1)
                    _ray_taps(slope, low, high, offset, scale, index, weight)
                    line = row * (columns + 2)
                    base = (v - block) * cells
                    # Neighbouring rays add to the same pixel, each waiting for the one before: four that are far
                    # apart, in turn, keep the processor busy.
                    part = (high - low) // 4
                    for c in range(low, low + part):
                        for ray in (c, c + part, c + 2 * part, c + 3 * part):
                            right = weight[ray]
                            scatter_two(
                                image, (line + index[ray]) * width, scaled, (base + ray) * width,
                                one - right, right, lanes,
                            )  # fmt: skip
                    for c in range(low + 4 * part, high):
                        right = weight[c]
                        scatter_two(
                            image, (line + index[c]) * width, scaled, (base + c) * width, one - right, right, lanes
                        )


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"})
def _pixel_taps(xs, y, view, cells, source_to_center, cells_per_unit, center, arctan, index, first, second):
    """Where the pixels of a row fall on the detector of a view: padded cell index and the two cells' weights.

    `arctan`: ten coefficients of an odd polynomial for the equiangular detector, and the largest square they are good
    for; empty for the flat one.
    """
    sine, cosine = view[0], view[1]
    one = xs.dtype.type(1)
    along = source_to_center + y * cosine
    across = y * sine
    last = xs.dtype.type(cells + 1)
    none = xs.dtype.type(0)
    if arctan.size == 0:
        for i in range(xs.size):
            inverse = one / (along - xs[i] * sine)
            distance = source_to_center * inverse
            first[i] = distance * distance
            second[i] = (across + xs[i] * cosine) * inverse
    else:
        # Written out: a loop over the terms would keep the compiler from doing many pixels at once.
        a0, a1, a2, a3, a4 = arctan[0], arctan[1], arctan[2], arctan[3], arctan[4]
        a5, a6, a7, a8, a9 = arctan[5], arctan[6], arctan[7], arctan[8], arctan[9]
        for i in range(xs.size):
            inverse = one / (along - xs[i] * sine)
            distance = source_to_center * inverse
            r = (across + xs[i] * cosine) * inverse
            # Beyond, the polynomial stays at its last value: that pixel falls past the detector's edge.
            s = min(r * r, arctan[10])
            low = (((a0 * s + a1) * s + a2) * s + a3) * s + a4
            first[i] = distance * distance / (one + r * r)
            second[i] = r * (((((low * s + a5) * s + a6) * s + a7) * s + a8) * s + a9)
    for i in range(xs.size):
        at = second[i] * cells_per_unit + center
        weight = first[i]
        inside = (at >= 0) & (at < last)
        at = at if inside else none
        weight = weight if inside else none
        left = np.int32(at)
        index[i] = left
        second[i] = weight * (at - left)
        first[i] = weight - second[i]


@njit(nogil=True, cache=True, error_model="numpy")
def backproject(
    image, sinogram, shape, views, xs, ys, source_to_center, cells_per_unit, center, arctan, start, stop, lanes
):
    """Add the distance-weighted backprojection of a padded sinogram to the image rows [start, stop)."""
    cells, _, columns = shape
    width = len(lanes)
    index = np.empty(columns, np.int32)
    first = np.empty(columns, xs.dtype)
    second = np.empty(columns, xs.dtype)
    for block in range(start, stop, ROW_BLOCK):
        for v in range(views.shape[0]):
            base = v * (cells + 2)
            for row in range(block, min(block + ROW_BLOCK, stop)):
                _pixel_taps(
                    xs, ys[row], views[v], cells, source_to_center, cells_per_unit, center, arctan,
                    index, first, second,
                )  # fmt: skip
                line = row * columns
                for i in range(columns):
                    gather_two(
                        image, (line + i) * width, sinogram, (base + index[i]) * width, first[i], second[i], lanes
                    )


@njit(nogil=True, cache=True, error_model="numpy")
def backproject_transpose(
    image, sinogram, shape, views, xs, ys, source_to_center, cells_per_unit, center, arctan, start, stop, lanes
):
    """Transpose of :func:`backproject`, for the views [start, stop)."""
    cells, rows, columns = shape
    width = len(lanes)
    index = np.empty(columns, np.int32)
    first = np.empty(columns, xs.dtype)
    second = np.empty(columns, xs.dtype)
    for block in range(start, stop, VIEW_BLOCK):
        for row in range(rows):
            for v in range(block, min(block + VIEW_BLOCK, stop)):
                _pixel_taps(
                    xs, ys[row], views[v], cells, source_to_center, cells_per_unit, center, arctan,
                    index, first, second,
                )  # fmt: skip
                base = v * (cells + 2)
                line = row * columns
                # As in project_transpose: neighbours add to the same cell, each waiting for the one before.
                part = columns // 4
                for i in range(part):
                    for pixel in (i, i + part, i + 2 * part, i + 3 * part):
                        scatter_two(
                            sinogram, (base + index[pixel]) * width, image, (line + pixel) * width,
                            first[pixel], second[pixel], lanes,
                        )  # fmt: skip
                for i in range(4 * part, columns):
                    scatter_two(
                        sinogram, (base + index[i]) * width, image, (line + i) * width, first[i], second[i], lanes
                    )
