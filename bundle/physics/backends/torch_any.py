"""The backend for every device that torch knows: the numba kernels' arithmetic as gathers and scatters."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..geometry import FanBeamGeometry
from .base import is_recorded
from .rays import RayFrame, ray_frames

# What a chunk of rays or views may take, with the tables of its samples and what they gather from every slice.
_BYTES = 2**27
# Tables of one sample at their peak, in float64 while they are made, and values gathered from each slice, with what
# the weights make of them: as measured.
_TABLE_BYTES, _GATHERED = 256, 14


class TorchBackend:
    """Joseph projection and pixel-driven backprojection in plain torch, with exact transposes."""

    def __init__(self, geometry: FanBeamGeometry) -> None:
        self.geometry = geometry
        self._frames = ray_frames(geometry)

    def project(self, image: Tensor) -> Tensor:
        out = image.new_zeros(image.shape[0], self.geometry.num_views * self.geometry.num_cells)
        for frame in self._frames:
            turned = torch.rot90(image, frame.turn, (1, 2)).flatten(1)
            for rays, left, right, index, inside in self._rays(frame, image):
                taps = turned[:, index] * left + turned[:, index + inside] * right
                out.index_copy_(1, rays, taps.sum(-1))
        return out.unflatten(1, self.geometry.sinogram_shape)

    def project_transpose(self, sinogram: Tensor) -> Tensor:
        rows, columns = self.geometry.image_shape
        out = sinogram.new_zeros(sinogram.shape[0], rows, columns)
        flat = sinogram.flatten(1)
        for frame in self._frames:
            turned = out.new_zeros(out.shape[0], rows * columns)
            for rays, left, right, index, inside in self._rays(frame, sinogram):
                values = flat[:, rays, None]
                turned.index_add_(1, index.flatten(), (values * left).flatten(1))
                turned.index_add_(1, (index + inside).flatten(), (values * right).flatten(1))
            out += torch.rot90(turned.unflatten(1, frame.image_shape), -frame.turn, (1, 2))
        return out

    def backproject(self, sinogram: Tensor) -> Tensor:
        rows, columns = self.geometry.image_shape
        out = sinogram.new_zeros(sinogram.shape[0], rows * columns)
        flat = sinogram.flatten(1)
        for first, second, index in self._pixels(sinogram):
            out += (flat[:, index] * first + flat[:, index + 1] * second).sum(1)
        return out.unflatten(1, (rows, columns))

    def backproject_transpose(self, image: Tensor) -> Tensor:
        out = image.new_zeros(image.shape[0], self.geometry.num_views * self.geometry.num_cells)
        values = image.flatten(1)[:, None]
        for first, second, index in self._pixels(image):
            out.index_add_(1, index.flatten(), (values * first).flatten(1))
            out.index_add_(1, (index + 1).flatten(), (values * second).flatten(1))
        return out.unflatten(1, self.geometry.sinogram_shape)

    def _rays(self, frame: RayFrame, like: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Per chunk of rays: their flat index ``(R,)``, then for every row crossed ``(R, rows)``: the two weights in
        mm, the flat index of the left pixel, and 1 where the right pixel is the next one (0 at the image's edge)."""
        g, (rows, columns) = self.geometry, frame.image_shape
        counts = frame.ranges[:, 1] - frame.ranges[:, 0]
        views = np.repeat(np.arange(g.num_views), counts)
        cells = np.concatenate([np.arange(low, high) for low, high in frame.ranges]) if len(views) else views
        place = _table_device(like)
        y, row_start = torch.as_tensor(frame.rows_y, device=place), torch.arange(rows, device=place) * columns
        step = max(1, _samples(like) // rows)
        for start in range(0, len(views), step):
            v, c = views[start : start + step], cells[start : start + step]
            by_ray = (*frame.views[v].T, frame.sin_fan[c], frame.cos_fan[c])
            by_ray = (torch.as_tensor(np.ascontiguousarray(column), device=place)[:, None] for column in by_ray)
            sine, cosine, x_source, y_source, sin_fan, cos_fan = by_ray
            along = cos_fan * cosine + sin_fan * sine
            slope, length = (sin_fan * cosine - cos_fan * sine) / along, g.pixel_size / along
            scale = (y - y_source) / g.pixel_size
            at = (x_source - frame.x_first) / g.pixel_size + scale * slope
            left = at.floor()
            right = (at - left) * length
            first = length - right
            in_front = scale > 0
            first = torch.where(in_front & (left >= 0) & (left < columns), first, 0)
            right = torch.where(in_front & (left >= -1) & (left < columns - 1), right, 0)
            # One step left of the image only the right pixel counts: it is pixel 0, reached with step 0.
            inside = ((left >= 0) & (left < columns - 1)).long()
            index = left.clamp(0, columns - 1).long() + row_start
            yield (
                torch.as_tensor(v * g.num_cells + c, device=like.device),
                *(w.to(like) for w in (first, right)),
                *(i.to(like.device) for i in (index, inside)),
            )

    def _pixels(self, like: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Per chunk of views ``(V', pixels)``: weights of the two cells, and the flat index of the first."""
        g, place = self.geometry, _table_device(like)
        x, y = (torch.as_tensor(axis, device=place) for axis in g.pixel_coordinates())
        y, x = (axis.flatten() for axis in torch.meshgrid(y, x, indexing="ij"))
        cells_per_unit = g.source_to_detector / g.cell_pitch
        step = max(1, _samples(like) // len(x))
        for start in range(0, g.num_views, step):
            angle = torch.as_tensor(g.view_angles[start : start + step], device=place)[:, None]
            sine, cosine = angle.sin(), angle.cos()
            along = g.source_to_center - x * sine + y * cosine
            across = x * cosine + y * sine
            if g.detector == "flat":
                at = across / along * cells_per_unit + g.center_cell
                weight = (g.source_to_center / along) ** 2
            else:
                at = torch.atan2(across, along) * cells_per_unit + g.center_cell
                weight = g.source_to_center**2 / (along**2 + across**2)
            left = at.floor()
            second = weight * (at - left)
            first = weight - second
            # The cell after index is the one read with `second`: at the detector's two ends one of the pair is missing.
            inside = (left >= 0) & (left < g.num_cells - 1)
            before, behind = left == -1, left == g.num_cells - 1
            none = torch.zeros_like(first)
            index = left.clamp(0, max(g.num_cells - 2, 0)).long()
            low = torch.where(inside, first, torch.where(before, second, none))
            high = torch.where(inside, second, torch.where(behind, first, none))
            view = torch.arange(start, start + len(angle), device=place)[:, None]
            yield low.to(like), high.to(like), (index + view * g.num_cells).to(like.device)


def _samples(like: Tensor) -> int:
    """Samples of a chunk: every slice more gathers values of each."""
    # A recording is for any number of slices.
    slices = 1 if is_recorded() else len(like)
    return _BYTES // (_TABLE_BYTES + _GATHERED * slices * like.element_size())


def _table_device(like: Tensor) -> torch.device:
    """Where tables are made, in float64, which Apple's GPUs lack."""
    return torch.device("cpu") if like.device.type == "mps" else like.device
