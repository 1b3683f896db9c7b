"""LEAP as a backend on the CPU: its separable-footprint projectors, through its C interface."""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..geometry import FanBeamGeometry

# LEAP's library works on one current model and one thread pool for the whole process.
_LOCK = threading.Lock()
# Height of a cone's voxels and rows relative to their width: so flat that rays are as long as in the plane.
_FLATNESS = 1e-2
# LEAP's index arithmetic is wrong for a footprint that leaves the detector by a cell or more.
_SPARE_CELLS = 2


class LeapBackend:
    """Projection and weighted backprojection by LEAP's separable footprints, with exact transposes; float32 on the CPU.

    LEAP has no transpose of its weighted fan backprojection, and no equiangular fan. Both are cones of almost no
    height: one slice seen by three rows is weighted by the squared inverse distance, three slices seen by one row are
    not weighted. Only the flat detector's other three maps are LEAP's fan, which takes all slices in one call.

    LEAP leaves out pixels beyond the circle that its detector sees: it is told of a detector as wide as the image, and
    the cells that are not there are dropped. float64 data is computed in float32 and given back as float64: finer than
    the footprints' own error, and backends stay exchangeable.

    Args:
        geometry: scan and image grid.

    Raises:
        ValueError: LEAP is not installed, or its footprints can't serve that pixel size.

    Source: Kim and Champley, arXiv 2307.05801; Long, Fessler and Balter, IEEE TMI 29(11), 2010.
    """

    def __init__(self, geometry: FanBeamGeometry) -> None:
        _model()
        self.geometry = g = geometry
        self._flat = g.detector == "flat"
        # LEAP's equiangular cell spans the angle arctan(width / source_to_detector).
        arc_cell = g.source_to_detector * math.tan(g.cell_pitch / g.source_to_detector)
        self._cell_width = g.cell_pitch if self._flat else arc_cell
        self._check_pixel_size()
        farthest = math.asin(g.image_radius / g.source_to_center)
        reach = g.source_to_detector * (math.tan(farthest) if self._flat else farthest)
        needed = math.ceil(reach / g.cell_pitch) + _SPARE_CELLS
        self._cells_before = max(0, needed - math.floor(g.center_cell))
        self._cells_behind = max(0, needed - math.floor(g.num_cells - 1 - g.center_cell))
        # Near 0, where float32 degrees are finest.
        angles = g.view_angles - 2 * math.pi * round(g.view_angles[0] / (2 * math.pi))
        self._degrees = np.degrees(angles).astype(np.float32)
        # What turns LEAP's lengths of footprints into the protocol's weight (source_to_center / distance)^2.
        at_center = g.cell_pitch * g.source_to_center / (g.source_to_detector * g.pixel_size)
        self._fan_scale = at_center / g.pixel_size * np.cos(g.fan_angles)
        self._cone_scale = at_center**2 / g.pixel_size * (np.cos(g.fan_angles) if self._flat else 1.0)

    def _check_pixel_size(self) -> None:
        """LEAP computes only where every pixel's footprint is as wide as half a cell to two cells."""
        g = self.geometry
        x, y = (float(np.abs(axis).max()) for axis in g.pixel_coordinates())
        radius, cell = math.hypot(x, y), self._cell_width / g.source_to_detector
        low = cell / 2 * (g.source_to_center + radius)
        high = 2 * cell * (g.source_to_center - radius)
        if low <= g.pixel_size <= high:
            return
        # The same for any pixel_size, which moves the farthest pixel too.
        pixels, shift = math.hypot(*(n - 1 for n in g.image_shape)) / 2, math.hypot(*g.image_center)
        low = cell / 2 * (g.source_to_center + shift) / max(1 - cell / 2 * pixels, 1e-9)
        high = 2 * cell * (g.source_to_center - shift) / (1 + 2 * cell * pixels)
        allowed = f"a pixel_size between {low:.4g} and {high:.4g} mm" if low < high else "fewer pixels or smaller cells"
        raise ValueError(
            f"backend 'leap' needs {allowed} for image_shape {g.image_shape} and cell_pitch {g.cell_pitch:g} mm, "
            f"got pixel_size {g.pixel_size:.4g} mm"
        )

    def project(self, image: Tensor) -> Tensor:
        if self._flat:
            return self._trace("fan", image)
        return _each(image, lambda one: self._trace("cone", one.expand(3, -1, -1), rows=1))

    def project_transpose(self, sinogram: Tensor) -> Tensor:
        if self._flat:
            return self._spread("fan", "backproject", sinogram)
        return _each(sinogram, lambda one: self._spread("cone", "backproject", one, slices=3).sum(0, keepdim=True))

    def backproject(self, sinogram: Tensor) -> Tensor:
        if self._flat:
            return self._spread("fan", "weightedBackproject", sinogram * self._like(self._fan_scale, sinogram))
        sinogram = sinogram * self._like(self._cone_scale, sinogram)
        return _each(sinogram, lambda one: self._spread("cone", "backproject", one.expand(3, -1, -1), slices=1))

    def backproject_transpose(self, image: Tensor) -> Tensor:
        sinogram = _each(image, lambda one: self._trace("cone", one, rows=3).sum(0, keepdim=True))
        return sinogram * self._like(self._cone_scale, sinogram)

    @staticmethod
    def _like(scale: Any, value: Tensor) -> Tensor:
        return torch.as_tensor(scale, dtype=value.dtype)

    def _trace(self, form: str, image: Tensor, rows: int | None = None) -> Tensor:
        """``(slices, H, W)`` to ``(rows, V, D)``; as many rows as slices when not given."""
        g, rows = self.geometry, rows or len(image)
        volume = image.detach().float().contiguous()
        views = torch.zeros(g.num_views, rows, self._cells_before + g.num_cells + self._cells_behind)
        self._call(form, "project", views, volume)
        end = self._cells_before + g.num_cells
        return views[..., self._cells_before : end].permute(1, 0, 2).to(image.dtype).contiguous()

    def _spread(self, form: str, name: str, sinogram: Tensor, slices: int | None = None) -> Tensor:
        """``(rows, V, D)`` to ``(slices, H, W)``; as many slices as rows when not given."""
        g, rows = self.geometry, len(sinogram)
        views = torch.zeros(g.num_views, rows, self._cells_before + g.num_cells + self._cells_behind)
        end = self._cells_before + g.num_cells
        views[..., self._cells_before : end] = sinogram.detach().permute(1, 0, 2)
        volume = torch.zeros(slices or rows, *g.image_shape)
        self._call(form, name, views, volume)
        return volume.to(sinogram.dtype)

    def _call(self, form: str, name: str, views: Tensor, volume: Tensor) -> None:
        """Let LEAP fill `views` ``(V, rows, D)`` or `volume` ``(slices, H, W)``: float32, contiguous, on the CPU."""
        if not volume.numel() or not views.numel():
            return
        model, threads = _model(), torch.get_num_threads()
        with _LOCK:
            try:
                done = self._set_up(model, form, views, volume)
                if done:
                    function = getattr(model.libprojectors, name)
                    function.restype = ctypes.c_bool
                    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_bool]
                    done = function(views.data_ptr(), volume.data_ptr(), True)
                if not done:
                    raise RuntimeError(
                        f"LEAP refused {name} as {form}: views {tuple(views.shape)}, image {tuple(volume.shape)}, "
                        f"{self.geometry}; it printed why"
                    )
            finally:
                # LEAP takes every core, and torch would keep that number.
                torch.set_num_threads(threads)

    def _set_up(self, model: Any, form: str, views: Tensor, volume: Tensor) -> bool:
        """Tell LEAP scan and grid: every time, for its model is shared and the number of slices changes."""
        g = self.geometry
        num_views, rows, cells = views.shape
        slices, num_rows, num_columns = volume.shape
        flatness = _FLATNESS if form == "cone" else 1.0
        # Rows relate to slices as cells to pixels, so that LEAP's limits hold for the one where they do for the other.
        row_height = flatness * (self._cell_width if form == "cone" else g.pixel_size)
        scan = (
            *(num_views, rows, cells, row_height, self._cell_width, (rows - 1) / 2),
            *(self._cells_before + g.center_cell, self._degrees, g.source_to_center, g.source_to_detector),
        )
        grid = (num_columns, num_rows, slices, g.pixel_size, flatness * g.pixel_size, *g.image_center)
        done = model.set_conebeam(*scan) if form == "cone" else model.set_fanbeam(*scan)
        if not self._flat:
            done = done and model.set_curvedDetector()
        return bool(done and model.set_volume(*grid))


def _each(stack: Tensor, work: Callable[[Tensor], Tensor]) -> Tensor:
    """`work` on every slice ``(1, ...)`` of a stack, put together."""
    if not len(stack):
        return work(stack.new_zeros(1, *stack.shape[1:]))[:0]
    return torch.cat([work(one) for one in stack.split(1)])


def _model() -> Any:
    """LEAP's model: one for the process, as each that is made stays in LEAP's list for ever.

    Raises:
        ValueError: LEAP is not there, can't be loaded, or was loaded before this process was forked.
    """
    model, process = _load()
    if process != os.getpid():
        raise ValueError(
            "backend 'leap' can't work in a process forked after LEAP was loaded: its threads are gone, it would hang; "
            "use it in the main process, or start workers by 'spawn'"
        )
    return model


@lru_cache
def _load() -> tuple[Any, int]:
    try:
        with _LOCK:
            model = importlib.import_module("leapctype").tomographicModels()
    except (ImportError, OSError) as error:
        raise ValueError(_missing(str(error))) from error
    # Without its library LEAP prints a line and goes on.
    if model.libprojectors is None:
        raise ValueError(_missing("leapctype finds no library libleapct beside it"))
    # Also a LEAP that knows GPUs computes on the CPU here, where its footprints were measured.
    model.set_gpu(-1)
    return model, os.getpid()


def _missing(reason: str) -> str:
    return (
        f"backend 'leap' needs LEAP, the LivermorE AI Projector for CT, version 1.26 or later: {reason}. It is built "
        "from its source as its manual says, and its folder put on Python's path so that 'import leapctype' works; "
        "conda-forge has it as leapct. Or use backend 'auto'"
    )
