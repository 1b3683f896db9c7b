"""Which rays run along which image axis: shared by the backends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..geometry import FanBeamGeometry

# A ray at exactly 45 degrees belongs to one frame; rounding must not put it into two or none.
_EDGE = 1e-9


@dataclass(frozen=True)
class RayFrame:
    """The scan turned by `turn` quarters, and the rays that there run within 45 degrees of the y axis.

    Attributes:
        turn: quarter turns; the image is ``numpy.rot90(image, turn)``.
        image_shape: rows, columns of the turned image.
        views: per view sine and cosine of its angle, x and y of the source (mm), ``(V, 4)``.
        ranges: first and end cell of each view's rays, ``(V, 2)``.
        sin_fan, cos_fan: of each cell's fan angle.
        x_first: x of the first column, mm.
        rows_y: y of every row, mm.
    """

    turn: int
    image_shape: tuple[int, int]
    views: np.ndarray
    ranges: np.ndarray
    sin_fan: np.ndarray
    cos_fan: np.ndarray
    x_first: float
    rows_y: np.ndarray


def ray_frames(geometry: FanBeamGeometry) -> list[RayFrame]:
    """The four frames; every ray of the scan belongs to exactly one."""
    x, y = geometry.pixel_coordinates()
    fan = geometry.fan_angles
    frames = []
    for turn in range(4):
        angles = geometry.view_angles - turn * np.pi / 2
        direction = np.mod(fan[None] - angles[:, None] + np.pi / 4 + _EDGE, 2 * np.pi)
        inside = direction < np.pi / 2
        low = inside.argmax(axis=1)
        ranges = np.stack([low, low + inside.sum(axis=1)], axis=1).astype(np.int64)
        sine, cosine = np.sin(angles), np.cos(angles)
        source = geometry.source_to_center
        # Columns and rows of the turned grid, by its quarter turns.
        columns_x, rows_y = [(x, y), (y, -x[::-1]), (-x[::-1], -y[::-1]), (-y[::-1], x)][turn]
        frames.append(
            RayFrame(
                turn=turn,
                image_shape=(len(rows_y), len(columns_x)),
                views=np.stack([sine, cosine, source * sine, -source * cosine], axis=1),
                ranges=ranges,
                sin_fan=np.sin(fan),
                cos_fan=np.cos(fan),
                x_first=float(columns_x[0]),
                rows_y=rows_y,
            )
        )
    return frames


def arctan_polynomial(largest: float) -> np.ndarray:
    """Ten coefficients, highest first, of ``arctan(r) / r`` in powers of ``r^2``, and the largest such square.

    They hold for angles up to `largest`; beyond, a polynomial may turn back onto the detector.
    """
    top = np.tan(min(largest, 1.1)) ** 2
    nodes = (np.cos(np.pi * (np.arange(64) + 0.5) / 64) + 1) / 2 * top
    ratio = np.sqrt(nodes)
    fit = np.polynomial.Chebyshev.fit(nodes, np.arctan(ratio) / ratio, 9, domain=[0, top])
    return np.append(fit.convert(kind=np.polynomial.Polynomial).coef[::-1], top)
