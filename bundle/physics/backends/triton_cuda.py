"""The backend for CUDA devices with Triton: kernels that hold no table of rays or pixels, only their few angles.

The arithmetic is that of the numba kernels (Joseph's method in four frames, :mod:`.rays`; pixel-driven
backprojection). A turned frame is never copied: a start and two strides read the image as if it were turned. The
transpose of projection is a gather, as each pixel looks up the few rays that cross its row beside it, so it is bitwise
reproducible. The transpose of backprojection adds atomically: exact to rounding, but in no fixed order (plain torch
takes its place where ``torch.use_deterministic_algorithms`` is on).

Checked in Triton's interpreter (``TRITON_INTERPRET=1``, tensors on the CPU) and compiled for NVIDIA GPUs, but never
yet run on one. So ``auto`` takes it only where :func:`agrees_with_torch` holds.

Sources: Joseph, IEEE TMI 1(3), 1982; Kak and Slaney, Principles of Computerized Tomographic Imaging, 1988, section 3.4.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..geometry import FanBeamGeometry
from .rays import RayFrame, arctan_polynomial, ray_frames
from .torch_any import TorchBackend

_log = logging.getLogger(__name__)

#: Slices that share one computation of the geometry.
_MOST_LANES = 8
#: A ray's or a pixel's cell is found within rounding, far less than this part of a cell.
_GUARD = tl.constexpr(0.02)


@triton.jit
def _ray(fan, cell, cells, sine, cosine, valid):
    """Columns that a ray crosses per row, and rows per path length; where not `valid`, 0 and 1.

    `fan`: sines, then cosines, of the cells' fan angles.
    """
    sin_fan = tl.load(fan + cell, mask=valid, other=0.0)
    cos_fan = tl.load(fan + cells + cell, mask=valid, other=0.0)
    across = sin_fan * cosine - cos_fan * sine
    along = tl.where(valid, cos_fan * cosine + sin_fan * sine, 1.0)
    return tl.where(valid, across / along, 0.0), along


@triton.jit
def _cell_of(tangent, scan, ARC: tl.constexpr):
    """Where on the detector (fractional cell) a ray of that fan angle's tangent falls."""
    if ARC:
        square = tl.minimum(tangent * tangent, tl.load(scan + 16))
        ratio = tl.load(scan + 6)
        for k in tl.static_range(7, 16):
            ratio = ratio * square + tl.load(scan + k)
        tangent = tangent * ratio
    return tangent * tl.load(scan + 4) + tl.load(scan + 5)


@triton.jit
def _project(
    image, sinogram, frame, ranges, fan, scan, slices, rays, views, cells, rows, columns, start, row_step, column_step,
    ARC: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Line integrals of the frame's rays; one program a block of (view, cell) pairs."""
    at_ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    known = at_ray < rays
    entry, cell = at_ray // cells, at_ray % cells
    view = tl.load(ranges + entry * 3, mask=known, other=0)
    first = tl.load(ranges + entry * 3 + 1, mask=known, other=0)
    end = tl.load(ranges + entry * 3 + 2, mask=known, other=0)
    valid = known & (cell >= first) & (cell < end)
    sine = tl.load(frame + entry * 6, mask=valid, other=0.0)
    cosine = tl.load(frame + entry * 6 + 1, mask=valid, other=0.0)
    offset = tl.load(frame + entry * 6 + 2, mask=valid, other=0.0)
    height = tl.load(frame + entry * 6 + 3, mask=valid, other=0.0)
    slope, along = _ray(fan, cell, cells, sine, cosine, valid)
    slice_ = image + lane.to(tl.int64)[:, None] * (rows * columns) + start
    real = (lane < slices)[:, None]
    total = tl.zeros((LANES, BLOCK), slope.dtype)
    # A block without a ray of this frame has nothing to walk.
    for row in range(0, rows * tl.max(valid.to(tl.int32), 0)):
        scale = row + height
        # Past the edges nothing counts; the limit keeps the index an index.
        at = tl.minimum(tl.maximum(offset + scale * slope, -2.0), columns + 1.0)
        left = tl.floor(at)
        right = at - left
        column = left.to(tl.int32)
        seen = valid & (scale > 0)
        pixel = slice_ + (row * row_step + column * column_step)[None]
        left_seen = real & (seen & (column >= 0) & (column < columns))[None]
        right_seen = real & (seen & (column >= -1) & (column < columns - 1))[None]
        total += (1 - right)[None] * tl.load(pixel, mask=left_seen, other=0.0)
        total += right[None] * tl.load(pixel + column_step, mask=right_seen, other=0.0)
    total *= (tl.load(scan) / along)[None]
    target = sinogram + (lane.to(tl.int64)[:, None] * views + view[None]) * cells + cell[None]
    tl.store(target, total, mask=real & valid[None])


@triton.jit
def _project_transpose(
    image, sinogram, frame, ranges, fan, scan, slices, entries, views, cells, rows, columns, start, row_step,
    column_step, ARC: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Transpose of :func:`_project`, added to the image; one program a block of the frame's pixels."""
    at_pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    known = at_pixel < rows * columns
    row, column = at_pixel // columns, at_pixel % columns
    real = (lane < slices)[:, None]
    pixel = image + lane.to(tl.int64)[:, None] * (rows * columns)
    pixel += (start + row * row_step + column * column_step)[None]
    total = tl.load(pixel, mask=real & known[None], other=0.0)
    size = tl.load(scan)
    for entry in range(0, entries):
        sine, cosine = tl.load(frame + entry * 6), tl.load(frame + entry * 6 + 1)
        offset, height = tl.load(frame + entry * 6 + 2), tl.load(frame + entry * 6 + 3)
        least, most = tl.load(frame + entry * 6 + 4), tl.load(frame + entry * 6 + 5)
        view = tl.load(ranges + entry * 3)
        scale = row + height
        in_front = known & (scale > 0)
        scale = tl.where(in_front, scale, 1.0)
        # Rays that cross the row less than one column beside the pixel, by slope, then by cell.
        low, high = (column - 1 - offset) / scale, (column + 1 - offset) / scale
        near = in_front & (low <= most) & (high >= least)
        low = tl.minimum(tl.maximum(low, least), most)
        high = tl.minimum(tl.maximum(high, least), most)
        low = _cell_of((low * cosine + sine) / (cosine - low * sine), scan, ARC)
        high = _cell_of((high * cosine + sine) / (cosine - high * sine), scan, ARC)
        first = tl.maximum(tl.ceil(low - _GUARD).to(tl.int32), tl.load(ranges + entry * 3 + 1))
        last = tl.minimum(tl.floor(high + _GUARD).to(tl.int32), tl.load(ranges + entry * 3 + 2) - 1)
        count = tl.where(near, last - first + 1, 0)
        values = sinogram + (lane.to(tl.int64)[:, None] * views + view) * cells
        for k in range(0, tl.max(count, 0)):
            cell, valid = first + k, k < count
            slope, along = _ray(fan, cell, cells, sine, cosine, valid)
            # One minus the distance: the weight that this ray gave the pixel as its left or right neighbour.
            weight = tl.maximum(1 - tl.abs(offset + scale * slope - column), 0.0) * (size / along)
            total += weight[None] * tl.load(values + cell[None], mask=real & valid[None], other=0.0)
    tl.store(pixel, total, mask=real & known[None])


@triton.jit
def _pixel_taps(x, y, sine, cosine, scan, cells, ARC: tl.constexpr):
    """Cell left of where a pixel falls on the detector, and the weights of it and of the next."""
    source = tl.load(scan + 3)
    inverse = 1 / (source - x * sine + y * cosine)
    tangent = (x * cosine + y * sine) * inverse
    weight = source * inverse * source * inverse
    if ARC:
        weight = weight / (1 + tangent * tangent)
    at = tl.minimum(tl.maximum(_cell_of(tangent, scan, ARC), -2.0), cells + 1.0)
    left = tl.floor(at)
    second = weight * (at - left)
    return left.to(tl.int32), weight - second, second


@triton.jit
def _backproject(
    image, sinogram, angles, scan, slices, views, cells, rows, columns,
    ARC: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Distance-weighted backprojection; one program a block of pixels."""
    at_pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    known = at_pixel < rows * columns
    real = (lane < slices)[:, None]
    # Pixels past the last row are read nowhere; there they would run through the source.
    row, column = tl.where(known, at_pixel // columns, 0), at_pixel % columns
    x = tl.load(scan + 1) + column * tl.load(scan)
    y = tl.load(scan + 2) + row * tl.load(scan)
    total = tl.zeros((LANES, BLOCK), x.dtype)
    for view in range(0, views):
        cell, first, second = _pixel_taps(
            x, y, tl.load(angles + view * 2), tl.load(angles + view * 2 + 1), scan, cells, ARC
        )
        value = sinogram + (lane.to(tl.int64)[:, None] * views + view) * cells + cell[None]
        first_seen = real & (known & (cell >= 0) & (cell < cells))[None]
        second_seen = real & (known & (cell >= -1) & (cell < cells - 1))[None]
        total += first[None] * tl.load(value, mask=first_seen, other=0.0)
        total += second[None] * tl.load(value + 1, mask=second_seen, other=0.0)
    pixel = image + lane.to(tl.int64)[:, None] * (rows * columns) + at_pixel[None]
    tl.store(pixel, total, mask=real & known[None])


@triton.jit
def _backproject_transpose(
    image, sinogram, angles, scan, slices, views, cells, rows, columns,
    ARC: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Transpose of :func:`_backproject`, added atomically to the sinogram; one program a block of pixels."""
    at_pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    known = at_pixel < rows * columns
    real = (lane < slices)[:, None]
    row, column = tl.where(known, at_pixel // columns, 0), at_pixel % columns
    x = tl.load(scan + 1) + column * tl.load(scan)
    y = tl.load(scan + 2) + row * tl.load(scan)
    pixel = image + lane.to(tl.int64)[:, None] * (rows * columns) + at_pixel[None]
    values = tl.load(pixel, mask=real & known[None], other=0.0)
    for view in range(0, views):
        cell, first, second = _pixel_taps(
            x, y, tl.load(angles + view * 2), tl.load(angles + view * 2 + 1), scan, cells, ARC
        )
        target = sinogram + (lane.to(tl.int64)[:, None] * views + view) * cells + cell[None]
        first_seen = real & (known & (cell >= 0) & (cell < cells))[None]
        second_seen = real & (known & (cell >= -1) & (cell < cells - 1))[None]
        tl.atomic_add(target, first[None] * values, mask=first_seen, sem="relaxed")
        tl.atomic_add(target + 1, second[None] * values, mask=second_seen, sem="relaxed")


#: Kernels run as Python on the CPU: ``TRITON_INTERPRET`` was set when this module was imported.
INTERPRETED = not isinstance(_project, triton.JITFunction)
#: Rays or pixels of one program. The interpreter's cost is by operation, not by element.
_BLOCK = 4096 if INTERPRETED else 128


@dataclass(frozen=True)
class _Frame:
    """One of :func:`ray_frames` on the device.

    Attributes:
        entries: views that have rays in this frame.
        reals: by entry sine, cosine, source's column, rows from the source to row 0, least and most slope, ``(E, 6)``.
        ranges: by entry view, first and end cell, ``(E, 3)``.
        grid: rows and columns of the turned image; index of its first pixel, index steps by row and by column.
    """

    entries: int
    reals: Tensor
    ranges: Tensor
    grid: tuple[int, int, int, int, int]


@dataclass(frozen=True)
class _Tables:
    """What the kernels read, on the data's device and in its precision.

    Attributes:
        frames: those that have rays.
        angles: sine and cosine by view, ``(V, 2)``.
        fan: sine and cosine by cell, ``(2, D)``.
        scan: pixel size, x and y of the first pixel, source to centre (mm), cells per unit of the fan angle's tangent
            (equiangular: of the angle), central cell, ten coefficients of the arctangent, the largest square they
            hold for.
    """

    frames: tuple[_Frame, ...]
    angles: Tensor
    fan: Tensor
    scan: Tensor


class TritonBackend:
    """Joseph projection and pixel-driven backprojection on CUDA, with exact transposes.

    Beside input and output it holds a few numbers per view and per cell.
    """

    def __init__(self, geometry: FanBeamGeometry) -> None:
        self.geometry = geometry
        self._tables: dict[tuple[torch.device, torch.dtype], _Tables] = {}

    def project(self, image: Tensor) -> Tensor:
        out = image.new_zeros(image.shape[0], *self.geometry.sinogram_shape)
        self._trace(_project, image, out, over_rays=True)
        return out

    def project_transpose(self, sinogram: Tensor) -> Tensor:
        out = sinogram.new_zeros(sinogram.shape[0], *self.geometry.image_shape)
        self._trace(_project_transpose, out, sinogram, over_rays=False)
        return out

    def backproject(self, sinogram: Tensor) -> Tensor:
        out = sinogram.new_zeros(sinogram.shape[0], *self.geometry.image_shape)
        self._spread(_backproject, out, sinogram)
        return out

    def backproject_transpose(self, image: Tensor) -> Tensor:
        if torch.are_deterministic_algorithms_enabled():
            # Atomic additions come in any order.
            return TorchBackend(self.geometry).backproject_transpose(image)
        out = image.new_zeros(image.shape[0], *self.geometry.sinogram_shape)
        self._spread(_backproject_transpose, image, out)
        return out

    def _trace(self, kernel: Callable, image: Tensor, sinogram: Tensor, over_rays: bool) -> None:
        tables, (views, cells) = self._tables_for(image), self.geometry.sinogram_shape
        for frame in tables.frames:
            rays = frame.entries * cells
            count, bound = (rays, rays) if over_rays else (frame.grid[0] * frame.grid[1], frame.entries)
            inputs = (frame.reals, frame.ranges, tables.fan, tables.scan, len(image), bound, views, cells, *frame.grid)
            self._launch(kernel, count, image, sinogram, *inputs)

    def _spread(self, kernel: Callable, image: Tensor, sinogram: Tensor) -> None:
        tables, g = self._tables_for(image), self.geometry
        inputs = (tables.angles, tables.scan, len(image), *g.sinogram_shape, *g.image_shape)
        self._launch(kernel, g.image_shape[0] * g.image_shape[1], image, sinogram, *inputs)

    def _launch(self, kernel: Callable, count: int, image: Tensor, *inputs) -> None:
        if len(image) == 0:
            return
        lanes = min(triton.next_power_of_2(len(image)), _MOST_LANES)
        grid = (triton.cdiv(count, _BLOCK), triton.cdiv(len(image), lanes))
        with torch.cuda.device_of(image):
            kernel[grid](image, *inputs, ARC=self.geometry.detector == "equiangular", LANES=lanes, BLOCK=_BLOCK)

    def _tables_for(self, like: Tensor) -> _Tables:
        key = like.device, like.dtype
        if key not in self._tables:
            self._tables[key] = _make_tables(self.geometry, like)
        return self._tables[key]


def _make_tables(g: FanBeamGeometry, like: Tensor) -> _Tables:
    def reals(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(like)

    def frame_on_device(frame: RayFrame) -> _Frame:
        entries = np.flatnonzero(frame.ranges[:, 0] < frame.ranges[:, 1])
        first, end = frame.ranges[entries].T
        sine, cosine, x_source, y_source = frame.views[entries].T
        slopes = [
            (frame.sin_fan[c] * cosine - frame.cos_fan[c] * sine)
            / (frame.cos_fan[c] * cosine + frame.sin_fan[c] * sine)
            for c in (first, end - 1)
        ]
        offset, height = (x_source - frame.x_first) / g.pixel_size, (frame.rows_y[0] - y_source) / g.pixel_size
        rows, columns = g.image_shape
        # numpy.rot90's indices, quarter turn by quarter turn.
        start, row_step, column_step = [
            (0, columns, 1),
            (columns - 1, -1, columns),
            (rows * columns - 1, -columns, -1),
            ((rows - 1) * columns, 1, -columns),
        ][frame.turn]
        return _Frame(
            entries=len(entries),
            reals=reals(np.stack([sine, cosine, offset, height, *slopes], axis=1)),
            ranges=torch.from_numpy(np.stack([entries, first, end], axis=1).astype(np.int32)).to(like.device),
            grid=(*frame.image_shape, start, row_step, column_step),
        )

    cells_per_unit = g.source_to_detector / g.cell_pitch
    # Pixels up to one cell past the detector's edge still see its last cell.
    arctan = arctan_polynomial(np.abs(g.fan_angles).max() + 1.01 / cells_per_unit)
    x, y = g.pixel_coordinates()
    scan = [g.pixel_size, x[0], y[0], g.source_to_center, cells_per_unit, g.center_cell, *arctan]
    return _Tables(
        frames=tuple(frame_on_device(f) for f in ray_frames(g) if (f.ranges[:, 0] < f.ranges[:, 1]).any()),
        angles=reals(np.stack([np.sin(g.view_angles), np.cos(g.view_angles)], axis=1)),
        fan=reals(np.stack([np.sin(g.fan_angles), np.cos(g.fan_angles)])),
        scan=reals(np.asarray(scan)),
    )


@lru_cache
def agrees_with_torch(device: torch.device) -> bool:
    """Whether the kernels compile on `device` and there give, on a tiny scan, what plain torch gives.

    Says why where they do not. Costs their compilation at a machine's first call.
    """
    _log.info("compiling the Triton kernels for %s; kept on disk for the next time", device)
    try:
        worst = max(_largest_gap(device, detector) for detector in ("flat", "equiangular"))
    except Exception as error:  # no compiler, an old driver, an old GPU: each raises its own kind
        _log.warning("Triton does not run on %s (%s: %s); plain torch is used", device, type(error).__name__, error)
        return False
    if not worst < 1e-4:
        _log.warning("Triton's results on %s are off by %.1e; plain torch is used", device, worst)
    return worst < 1e-4


def _largest_gap(device: torch.device, detector: str) -> float:
    """Largest relative difference of the four maps to plain torch's."""
    g = FanBeamGeometry(
        source_to_center=60.0, source_to_detector=110.0, num_views=12, num_cells=20, cell_pitch=2.0, pixel_size=2.0,
        image_shape=(12, 10), detector=detector,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    image, sinogram = (torch.rand(2, *s, generator=generator).to(device) for s in (g.image_shape, g.sinogram_shape))
    own, plain = TritonBackend(g), TorchBackend(g)
    gaps = []
    for name, value in [
        ("project", image), ("project_transpose", sinogram), ("backproject", sinogram), ("backproject_transpose", image)
    ]:  # fmt: skip
        expected = getattr(plain, name)(value)
        gaps.append(((getattr(own, name)(value) - expected).abs().max() / expected.abs().max()).item())
    # max() alone would pass over a NaN.
    return float(np.max(gaps))
