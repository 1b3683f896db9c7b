"""Filtered backprojection of fan-beam sinograms: HU-true, and with an exact gradient."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .geometry import FanBeamGeometry
from .projector import FanBeamOperator

#: Windows on the ramp filter, by frequency as a fraction of the cells' Nyquist frequency.
RAMP_WINDOWS = {
    "ram-lak": lambda f: np.ones_like(f),
    "shepp-logan": lambda f: np.sinc(f / 2),
    "cosine": lambda f: np.cos(np.pi * f / 2),
    "hann": lambda f: (1 + np.cos(np.pi * f)) / 2,
}


class FilteredBackprojection(FanBeamOperator):
    """Fan-beam FBP: line integrals in, attenuation in 1/mm out. Differentiable; its gradient is its exact transpose.

    Every view is weighted by the ray's obliqueness and redundancy (one half for a full scan, Parker's weights for a
    shorter arc), filtered by the windowed ramp, and backprojected with the squared inverse distance to the source.

    Args:
        geometry: scan and image grid. An arc below 180 degrees + fan angle can't be reconstructed.
        window: ``ram-lak``, ``shepp-logan``, ``cosine`` or ``hann``.
        backend: as for :class:`FanBeamProjector`.
        cutoff: where the window reaches its end, as a fraction of the cells' Nyquist frequency; nothing passes above.

    Raises:
        ValueError: unknown window or backend, a cutoff outside (0, 1], an arc too short.

    Source: Kak and Slaney, Principles of Computerized Tomographic Imaging, 1988, sections 3.4.1 and 3.4.2;
    Parker, Med. Phys. 9(2), 1982.
    """

    def __init__(
        self, geometry: FanBeamGeometry, window: str = "ram-lak", backend: str = "auto", cutoff: float = 1.0
    ) -> None:
        super().__init__(geometry, backend)
        if window not in RAMP_WINDOWS:
            raise ValueError(f"window must be one of {tuple(RAMP_WINDOWS)}, got {window!r}")
        if not 0 < cutoff <= 1:
            raise ValueError(f"cutoff must be in (0, 1], got {cutoff}")
        self.window, self.cutoff = window, cutoff
        weights = _cell_weights(geometry) * redundancy_weights(geometry) * view_steps(geometry)[:, None]
        # Follow from the geometry: not part of the weights that a state dict holds.
        self.register_buffer("_weights", torch.from_numpy(weights), persistent=False)
        self.register_buffer("_filter", torch.from_numpy(_ramp(geometry, window, cutoff)), persistent=False)

    def forward(self, sinogram: Tensor) -> Tensor:
        """Reconstruct ``(B, 1, V, D)`` line integrals to ``(B, 1, H, W)`` in 1/mm.

        Raises:
            ValueError: shape does not fit the geometry, or values are not finite.
        """
        sinogram = self._checked(sinogram, self.geometry.sinogram_shape, "sinogram")
        length = 2 * (len(self._filter) - 1)
        # The buffers are float64; the product takes the data's precision.
        weights, ramp = (b.to(sinogram.device, sinogram.dtype) for b in (self._weights, self._filter))
        spectrum = torch.fft.rfft(sinogram * weights, n=length) * ramp
        filtered = torch.fft.irfft(spectrum, n=length)[..., : self.geometry.num_cells]
        return self._linear(filtered, "backproject", "backproject_transpose")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window={self.window!r}, cutoff={self.cutoff}"


def view_steps(geometry: FanBeamGeometry) -> np.ndarray:
    """Angle that each view stands for, radians, ``(V,)``; they sum to the arc."""
    if geometry.angles is None:
        return np.full(geometry.num_views, abs(geometry.arc) / geometry.num_views)
    angles = np.sort(geometry.view_angles)
    if geometry.is_full_scan:
        gaps = np.diff(np.append(angles, angles[0] + 2 * np.pi))
        steps = (gaps + np.roll(gaps, 1)) / 2
    else:
        gaps = np.diff(angles)
        steps = (np.append(gaps, gaps[-1]) + np.insert(gaps, 0, gaps[0])) / 2
    return steps if geometry.angles[0] < geometry.angles[-1] else steps[::-1]


def redundancy_weights(geometry: FanBeamGeometry) -> np.ndarray:
    """Weight of each ray, ``(V, D)``: those of a ray and of its counterpart from the other side sum to 1.

    One half each for a full scan. For a shorter arc, Parker's smooth weights with the surplus arc given to the
    transition (Silver's extension): the ray at angle b and fan angle g meets its counterpart at b + pi - 2 g, -g.

    Raises:
        ValueError: the arc is below 180 degrees + fan angle; names both.

    Source: Parker, Med. Phys. 9(2), 1982, Eqs. 8-10; Silver, Med. Phys. 27(4), 2000.
    """
    if geometry.is_full_scan:
        return np.full(geometry.sinogram_shape, 0.5)
    fan = geometry.fan_angles
    half_fan = float(np.abs(fan).max())
    arc = abs(geometry.scan_arc)
    if arc < math.pi + 2 * half_fan - 1e-9:
        raise ValueError(
            f"the arc of {math.degrees(arc):.2f} degrees is below 180 degrees + fan angle = "
            f"{180 + 2 * math.degrees(half_fan):.2f} degrees: FBP would lack data (see arc, angles)"
        )
    surplus = (arc - math.pi) / 2
    # In the turning sense s the counterpart stands pi - 2 s g further on. View centres lie half a step in.
    sense = 1.0 if geometry.scan_arc > 0 else -1.0
    steps = view_steps(geometry)
    angle = (np.cumsum(steps) - steps / 2)[:, None]
    gamma = sense * fan[None]
    rising, falling = 2 * (surplus + gamma), math.pi + 2 * gamma
    with np.errstate(divide="ignore", invalid="ignore"):
        up = np.sin(np.pi / 2 * angle / rising) ** 2
        down = np.sin(np.pi / 2 * (arc - angle) / (2 * (surplus - gamma))) ** 2
    return np.where(angle < rising, up, np.where(angle < falling, 1.0, np.where(angle <= arc, down, 0.0)))


def _cell_weights(geometry: FanBeamGeometry) -> np.ndarray:
    """Cosine of the fan angle, ``(D,)``; with the equiangular detector's change of variable."""
    return np.cos(geometry.fan_angles)


def _ramp(geometry: FanBeamGeometry, window: str, cutoff: float) -> np.ndarray:
    """Frequency response of the windowed ramp, ``(length / 2 + 1,)``, in 1/mm, from the band-limited kernel.

    The kernel, not the ramp itself, is transformed: that keeps the mean of a cut-off view, and so HU, right.
    """
    cells = geometry.num_cells
    length = 2 ** math.ceil(math.log2(max(2 * cells, 64)))
    n = np.fft.fftfreq(length, 1 / length)
    odd = n % 2 == 1
    kernel = np.zeros(length)
    kernel[0] = 1 / 4
    kernel[odd] = -1 / (np.pi * n[odd]) ** 2
    # Cells as seen at the rotation centre.
    pitch = geometry.cell_pitch * geometry.source_to_center / geometry.source_to_detector
    if geometry.detector == "equiangular":
        step = geometry.cell_pitch / geometry.source_to_detector
        with np.errstate(invalid="ignore", divide="ignore"):
            stretch = np.where(n == 0, 1.0, n * step / np.sin(n * step))
        # Beyond the widest pair of cells the kernel is never used; there sin passes zero.
        kernel = kernel * np.where(np.abs(n) < cells, stretch, 1.0) ** 2
    frequency = np.fft.rfftfreq(length) * 2 / cutoff
    shape = np.where(frequency <= 1 + 1e-12, RAMP_WINDOWS[window](np.minimum(frequency, 1.0)), 0.0)
    return np.fft.rfft(kernel).real * shape / pitch
