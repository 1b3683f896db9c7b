"""The default backend on the CPU: numba kernels, threads of our own, slices side by side."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numba.core import event
from torch import Tensor

from ..geometry import FanBeamGeometry
from ..threads import in_threads
from . import numba_kernels as kernels
from .rays import RayFrame, arctan_polynomial, ray_frames

_WIDTHS = (16, 8, 4)

_log = logging.getLogger(__name__)


class _CompileNotice(event.Listener):
    """Tells the user once why a first call takes longer. A kernel that is loaded from the disk does not compile."""

    def __init__(self) -> None:
        self.said = False

    def on_start(self, event: event.Event) -> None:
        kernel = event.data["dispatcher"]
        if self.said or not kernel.py_func.__module__.startswith("bundle."):
            return
        self.said = True
        # A warning, as nobody would see less without settings of their own.
        _log.warning(
            "compiling kernels for this CPU: a few seconds each, the first time only; kept in %s",
            kernel.stats.cache_path,
        )

    def on_end(self, event: event.Event) -> None:
        """Nothing more to say."""


compile_notice = _CompileNotice()
event.register("numba:compile", compile_notice)


class NumbaBackend:
    """Joseph projection and pixel-driven backprojection of :class:`FanBeamGeometry`, with exact transposes.

    A full scan of a square, centred image looks the same after a quarter turn: then four turned copies of a slice
    share one computation of the geometry.
    """

    def __init__(self, geometry: FanBeamGeometry) -> None:
        self.geometry = geometry
        self.turns = 4 if self._has_quarter_symmetry() else 1
        self._frames = ray_frames(geometry)[: 1 if self.turns == 4 else 4]
        self._cell_scale = geometry.source_to_detector / geometry.cell_pitch
        self._arctan = np.empty(0)
        if geometry.detector == "equiangular":
            # Pixels up to one cell past the detector's edge still see its last cell.
            self._arctan = arctan_polynomial(np.abs(geometry.fan_angles).max() + 1.01 / self._cell_scale)

    def _has_quarter_symmetry(self) -> bool:
        g = self.geometry
        square = g.image_shape[0] == g.image_shape[1] and g.image_center == (0.0, 0.0)
        return square and g.angles is None and abs(abs(g.arc) - 2 * np.pi) < 1e-9 and g.num_views % 4 == 0

    def project(self, image: Tensor) -> Tensor:
        out = torch.zeros(image.shape[0], *self.geometry.sinogram_shape, dtype=image.dtype)
        source, target = image.numpy(), out.numpy()
        for slices, width in self._chunks(len(source)):
            lanes = np.zeros((*self.geometry.sinogram_shape, width), source.dtype)
            for frame in self._frames:
                packed = self._pack_image(source[slices.start : slices.stop], frame.turn, width, pad=1)
                self._trace(kernels.project, frame, packed, lanes, over=len(lanes), block=kernels.VIEW_BLOCK)
            self._add_views(target, lanes, slices)
        return out

    def project_transpose(self, sinogram: Tensor) -> Tensor:
        rows, columns = self.geometry.image_shape
        out = torch.zeros(sinogram.shape[0], rows, columns, dtype=sinogram.dtype)
        source, target = sinogram.numpy(), out.numpy()
        for slices, width in self._chunks(len(source)):
            lanes = self._pack_sinogram(source[slices.start : slices.stop], width, pad=0)
            for frame in self._frames:
                shape = frame.image_shape
                packed = np.zeros((shape[0], shape[1] + 2, width), source.dtype)
                packed = self._with_tail(packed)
                self._trace(kernels.project_transpose, frame, packed, lanes, over=shape[0], block=kernels.ROW_BLOCK)
                image = packed[: -2 * width].reshape(shape[0], shape[1] + 2, width)[:, 1:-1]
                for k, (slice_, turn) in enumerate(self._lane_of(slices)):
                    target[slice_] += np.rot90(image[..., k], -(frame.turn + turn))
        return out

    def backproject(self, sinogram: Tensor) -> Tensor:
        rows, columns = self.geometry.image_shape
        out = torch.zeros(sinogram.shape[0], rows, columns, dtype=sinogram.dtype)
        source, target = sinogram.numpy(), out.numpy()
        for slices, width in self._chunks(len(source)):
            lanes = self._pack_sinogram(source[slices.start : slices.stop], width, pad=1)
            image = np.zeros((rows, columns, width), source.dtype)
            self._spread(kernels.backproject, image, lanes, over=rows, block=kernels.ROW_BLOCK)
            for k, (slice_, turn) in enumerate(self._lane_of(slices)):
                target[slice_] += np.rot90(image[..., k], -turn)
        return out

    def backproject_transpose(self, image: Tensor) -> Tensor:
        out = torch.zeros(image.shape[0], *self.geometry.sinogram_shape, dtype=image.dtype)
        source, target = image.numpy(), out.numpy()
        views = self.geometry.num_views // self.turns
        for slices, width in self._chunks(len(source)):
            packed = self._pack_image(source[slices.start : slices.stop], 0, width, pad=0)
            lanes = np.zeros((views, self.geometry.num_cells + 2, width), source.dtype)
            self._spread(kernels.backproject_transpose, packed, lanes, over=views, block=kernels.VIEW_BLOCK)
            self._add_views(target, lanes[:, 1:-1], slices)
        return out

    def _chunks(self, slices: int) -> Iterator[tuple[range, int]]:
        """Slices that are computed together, and the number of lanes they are given."""
        start = 0
        while start < slices:
            wanted = (slices - start) * self.turns
            width = next((w for w in _WIDTHS if w <= wanted), _WIDTHS[-1])
            count = min(max(width // self.turns, 1), slices - start)
            yield range(start, start + count), width
            start += count

    def _lane_of(self, slices: range) -> list[tuple[int, int]]:
        """Slice and quarter turns of each lane in use."""
        return [(s, turn) for s in slices for turn in range(self.turns)]

    def _signed(self, turn: int) -> int:
        return turn if self.geometry.scan_arc > 0 else -turn

    def _pack_image(self, images: np.ndarray, turn: int, width: int, pad: int) -> np.ndarray:
        rows, columns = self.geometry.image_shape if turn % 2 == 0 else self.geometry.image_shape[::-1]
        packed = np.zeros((rows, columns + 2 * pad, width), images.dtype)
        inner = packed[:, pad : pad + columns]
        turned = [np.rot90(images[s], turn + extra) for s, extra in self._lane_of(range(len(images)))]

        def fill(low: int, high: int) -> None:
            for k, image in enumerate(turned):
                inner[low:high, :, k] = image[low:high]

        in_threads(fill, rows, kernels.ROW_BLOCK)
        return self._with_tail(packed)

    @staticmethod
    def _with_tail(packed: np.ndarray) -> np.ndarray:
        """Flat, with two pixels more at the end: rounding may put the last ray of the last row one pixel outside."""
        return np.concatenate([packed.ravel(), np.zeros(2 * packed.shape[-1], packed.dtype)])

    def _pack_sinogram(self, sinograms: np.ndarray, width: int, pad: int) -> np.ndarray:
        views, cells = self.geometry.sinogram_shape
        # Rays of a turned copy: the same cells, a quarter of the views on. Projection traces every view of one frame.
        count = views if not pad else views // self.turns
        lanes = np.zeros((count, cells + 2 * pad, width), sinograms.dtype)
        inner = lanes[:, pad : pad + cells]
        sources = [
            (k, sinograms[s], self._view_shift(turn))
            for k, (s, turn) in enumerate(self._lane_of(range(len(sinograms))))
        ]

        def fill(low: int, high: int) -> None:
            for start in range(low, high, kernels.VIEW_BLOCK):  # a block of views stays in the cache for all its lanes
                stop = min(start + kernels.VIEW_BLOCK, high)
                for k, source, shift in sources:
                    first = (start + shift) % views
                    tail = min(stop - start, views - first)
                    inner[start : start + tail, :, k] = source[first : first + tail]
                    inner[start + tail : stop, :, k] = source[: stop - start - tail]

        in_threads(fill, count, kernels.VIEW_BLOCK)
        return lanes

    def _view_shift(self, turn: int) -> int:
        """A copy turned by `turn` quarters shows at view v what the scan sees that many views later."""
        quarter = self.geometry.num_views // 4
        return (self._signed(turn) % 4) * quarter

    def _add_views(self, target: np.ndarray, lanes: np.ndarray, slices: range) -> None:
        """Add the lanes to the slices they belong to, each turned copy at its own views."""

        def add(low: int, high: int) -> None:
            for k, (slice_, turn) in enumerate(self._lane_of(slices)):
                if low <= slice_ - slices.start < high:
                    shift, views = self._view_shift(turn), target.shape[1]
                    tail = min(len(lanes), views - shift)
                    target[slice_, shift : shift + tail] += lanes[:tail, :, k]
                    target[slice_, : len(lanes) - tail] += lanes[tail:, :, k]

        in_threads(add, len(slices), 1)

    def _trace(self, kernel: Callable, frame: RayFrame, image, lanes, over: int, block: int) -> None:
        dtype = lanes.dtype
        rays = (
            *(frame.sin_fan.astype(dtype), frame.cos_fan.astype(dtype), frame.views.astype(dtype)),
            *(frame.ranges, dtype.type(frame.x_first), frame.rows_y.astype(dtype)),
            dtype.type(self.geometry.pixel_size),
        )
        shape = (self.geometry.num_cells, *frame.image_shape)
        tag = (0,) * lanes.shape[-1]
        flat = lanes.reshape(-1)
        in_threads(lambda low, high: kernel(image, flat, shape, *rays, low, high, tag), over, block)

    def _spread(self, kernel: Callable, image, lanes, over: int, block: int) -> None:
        g, dtype = self.geometry, lanes.dtype
        angles = g.view_angles[: len(lanes)]
        views = np.stack([np.sin(angles), np.cos(angles)], 1).astype(dtype)
        xs, ys = (axis.astype(dtype) for axis in g.pixel_coordinates())
        scan = (
            *(views, xs, ys, dtype.type(g.source_to_center), dtype.type(self._cell_scale)),
            *(dtype.type(g.center_cell + 1), self._arctan.astype(dtype)),
        )
        shape, tag = (g.num_cells, *g.image_shape), (0,) * lanes.shape[-1]
        flat_image, flat = image.reshape(-1), lanes.reshape(-1)
        in_threads(lambda low, high: kernel(flat_image, flat, shape, *scan, low, high, tag), over, block)
