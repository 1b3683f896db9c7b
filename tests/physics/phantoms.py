"""Phantoms whose line integrals are known in closed form, and small scans. Written from the conventions alone."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bundle.physics import MU_WATER, FanBeamGeometry

# x, y, standard deviation as fractions of the image's half width, amplitude as a fraction of water.
SMOOTH = np.array(
    [
        (0.00, 0.00, 0.20, 1.00),
        (0.35, 0.10, 0.08, 0.50),
        (-0.30, 0.25, 0.10, -0.30),
        (-0.10, -0.40, 0.07, 0.80),
        (0.20, -0.30, 0.12, 0.40),
        (0.05, 0.45, 0.06, 0.60),
    ]
)
# x, y, half axes, turn in degrees, amplitude as a fraction of water; the skull at 1000 HU, the brain near water.
SHEPP_LOGAN = np.array(
    [
        (0.00, 0.0000, 0.6900, 0.920, 0, 2.00),
        (0.00, -0.0184, 0.6624, 0.874, 0, -0.98),
        (0.22, 0.0000, 0.1100, 0.310, -18, -0.02),
        (-0.22, 0.0000, 0.1600, 0.410, 18, -0.02),
        (0.00, 0.3500, 0.2100, 0.250, 0, 0.01),
        (0.00, 0.1000, 0.0460, 0.046, 0, 0.01),
        (0.00, -0.1000, 0.0460, 0.046, 0, 0.01),
        (-0.08, -0.6050, 0.0460, 0.023, 0, 0.01),
        (0.00, -0.6060, 0.0230, 0.023, 0, 0.01),
        (0.06, -0.6050, 0.0230, 0.046, 0, 0.01),
    ]
)

# Scans that differ in what a projector may get wrong; every operator goes through all of them.
SCANS = {
    "full": {},
    "equiangular": {"detector": "equiangular"},
    "quarter-cell offset": {"detector_offset": 0.25},
    "turned start": {"start_angle": 0.3},
    "clockwise": {"arc": -2 * math.pi},
    "short": {"arc": 4.3},
    "short clockwise equiangular": {"arc": -4.3, "detector": "equiangular", "detector_offset": -0.25},
    "odd views": {"num_views": 71},
    "uneven angles": {"angles": tuple(0.0873 * k + 0.05 * math.sin(k) for k in range(72))},
    "oblong image off centre": {"image_shape": (40, 24), "image_center": (13.0, -29.0)},
    "image wider than the fan": {"num_cells": 8, "cell_pitch": 10.0, "detector": "equiangular"},
}


def scan(size: int = 32, **changes) -> FanBeamGeometry:
    """A full, flat scan over 340 mm; cells and views grow with the image, as 368 and 576 go with 256 pixels."""
    fields = {
        "source_to_center": 595.0,
        "source_to_detector": 1085.6,
        "num_views": size * 9 // 4,
        "num_cells": size * 23 // 16,
        "cell_pitch": 658.33 / size,
        "pixel_size": 340.0 / size,
        "image_shape": (size, size),
    }
    return FanBeamGeometry(**(fields | changes))


def rays(geometry: FanBeamGeometry) -> tuple[np.ndarray, np.ndarray]:
    """Source ``(V, 1, 2)`` and unit direction ``(V, D, 2)`` of every ray, x and y in mm."""
    beta = geometry.view_angles[:, None, None]
    central = np.concatenate([-np.sin(beta), np.cos(beta)], -1)
    along_cells = np.concatenate([np.cos(beta), np.sin(beta)], -1)
    cells = np.arange(geometry.num_cells) - (geometry.num_cells - 1) / 2 + geometry.detector_offset
    position = (cells * geometry.cell_pitch / geometry.source_to_detector)[None, :, None]
    if geometry.detector == "flat":
        direction = (central + position * along_cells) / np.sqrt(1 + position**2)
    else:
        direction = np.cos(position) * central + np.sin(position) * along_cells
    return -geometry.source_to_center * central, direction


def half_width(geometry: FanBeamGeometry) -> float:
    return min(geometry.image_shape) * geometry.pixel_size / 2


def grid(geometry: FanBeamGeometry, samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """x of the columns and y of the rows, mm; each pixel cut into `samples` a side."""
    axes = []
    for count, center in zip(geometry.image_shape[::-1], geometry.image_center):
        fine = (np.arange(count * samples) - (count * samples - 1) / 2) / samples
        axes.append(center + fine * geometry.pixel_size)
    return axes[0][None, :], axes[1][:, None]


def gaussian_image(geometry: FanBeamGeometry, blobs: np.ndarray = SMOOTH) -> Tensor:
    """Sampled at pixel centres: ``(1, 1, H, W)``, float64, 1/mm."""
    x, y = grid(geometry)
    scale = half_width(geometry)
    values = sum(
        MU_WATER * a * np.exp(-((x - u * scale) ** 2 + (y - v * scale) ** 2) / (2 * (s * scale) ** 2))
        for u, v, s, a in blobs
    )
    return torch.from_numpy(values)[None, None]


def gaussian_sinogram(geometry: FanBeamGeometry, blobs: np.ndarray = SMOOTH) -> Tensor:
    """Exact line integrals ``(1, 1, V, D)``, float64: ``a s sqrt(2 pi) exp(-t^2 / 2 s^2)``, t the ray's distance."""
    source, direction = rays(geometry)
    scale = half_width(geometry)
    total = np.zeros(geometry.sinogram_shape)
    for u, v, s, a in blobs:
        to = np.array([u, v]) * scale - source
        distance = to[..., 0] * direction[..., 1] - to[..., 1] * direction[..., 0]
        total += MU_WATER * a * s * scale * math.sqrt(2 * math.pi) * np.exp(-((distance / (s * scale)) ** 2) / 2)
    return torch.from_numpy(total)[None, None]


def ellipse_image(geometry: FanBeamGeometry, ellipses: np.ndarray = SHEPP_LOGAN, samples: int = 8) -> Tensor:
    """Mean of each pixel: ``(1, 1, H, W)``, float64, 1/mm."""
    x, y = grid(geometry, samples)
    scale = half_width(geometry)
    values = np.zeros(np.broadcast_shapes(x.shape, y.shape))
    for u, v, a, b, turn, amplitude in ellipses:
        cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        dx, dy = x / scale - u, y / scale - v
        inside = ((dx * cosine + dy * sine) / a) ** 2 + ((dy * cosine - dx * sine) / b) ** 2 <= 1
        values += MU_WATER * amplitude * inside
    rows, columns = geometry.image_shape
    return torch.from_numpy(values.reshape(rows, samples, columns, samples).mean((1, 3)))[None, None]


def ellipse_sinogram(geometry: FanBeamGeometry, ellipses: np.ndarray = SHEPP_LOGAN) -> Tensor:
    """Exact line integrals ``(1, 1, V, D)``, float64: each ray's chord, found where the ellipse is a unit circle."""
    source, direction = rays(geometry)
    scale = half_width(geometry)
    total = np.zeros(geometry.sinogram_shape)
    for u, v, a, b, turn, amplitude in ellipses:
        cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        to_circle = np.array([[cosine / a, -sine / b], [sine / a, cosine / b]]) / scale
        start, step = (source - np.array([u, v]) * scale) @ to_circle, direction @ to_circle
        square = (step**2).sum(-1)
        half = ((start * step).sum(-1)) ** 2 - square * ((start**2).sum(-1) - 1)
        total += MU_WATER * amplitude * 2 * np.sqrt(np.maximum(half, 0)) / square
    return torch.from_numpy(total)[None, None]


def field_of_view(geometry: FanBeamGeometry, part: float = 1.0) -> Tensor:
    """Pixels ``(H, W)`` within `part` of the circle that lies both in the image and in every view."""
    x, y = grid(geometry)
    radius = min(half_width(geometry), geometry.field_of_view_radius)
    return torch.from_numpy(x**2 + y**2 <= (part * radius) ** 2)


def rms(values: Tensor) -> float:
    return values.double().square().mean().sqrt().item()
