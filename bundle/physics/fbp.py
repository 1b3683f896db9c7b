"""Filtered backprojection of fan-beam sinograms: HU-true, and with an exact gradient."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .geometry import FanBeamGeometry
from .projector import FanBeamOperator, LinearMap

#: Windows on the ramp filter, by frequency as a fraction of the cells' Nyquist frequency.
RAMP_WINDOWS = {
    "ram-lak": lambda f: np.ones_like(f),
    "shepp-logan": lambda f: np.sinc(f / 2),
    "cosine": lambda f: np.cos(np.pi * f / 2),
    "hann": lambda f: (1 + np.cos(np.pi * f)) / 2,
}

#: What is done with a view that the detector cuts off.
TRUNCATION = ("extend", "ignore")

# Length of the extension at either end, as a fraction of the detector: small errors for discs 1.1 to 1.6 times as wide
# as the field of view, at the cost of those that stick out by less.
_EXTENSION = 0.15
# A view counts as cut off where its outer cells see more than both: air noise stays far below (5 mm of water, and a
# fraction of the view's largest line integral). A scan is said to be truncated from this share of such views on.
_EDGE_LINE_INTEGRAL, _EDGE_FRACTION, _EDGE_VIEWS = 0.1, 0.05, 0.05

# Padded samples that are filtered at a time, in whole slices: some 50 MB in float32.
_PADDED_SAMPLES = 2**22

_log = logging.getLogger(__name__)


class FilteredBackprojection(FanBeamOperator):
    """Fan-beam FBP: line integrals in, attenuation in 1/mm out. Differentiable; its gradient is its exact transpose.

    Every view is weighted by the ray's obliqueness and redundancy (one half for a full scan, Parker's weights for a
    shorter arc), filtered by the windowed ramp, and backprojected with the squared inverse distance to the source.

    Truncated projections, of an object wider than the detector, would be filtered as if air began at the last cell:
    a bright rim and wrong HU all over. So each view goes on beyond either end, from the end cell's value down to 0 as
    the chords of a water cylinder do. That is linear in the sinogram, and 0 where the end cell sees air: what is not
    truncated stays as it is. As its length is fixed, an object that sticks out by less than a tenth of the field of
    view gets too much of it, and ``ignore`` is nearer the truth. The log names the truncation once.

    Args:
        geometry: scan and image grid. An arc below 180 degrees + fan angle can't be reconstructed.
        window: ``ram-lak``, ``shepp-logan``, ``cosine`` or ``hann``.
        backend: as for :class:`FanBeamProjector`.
        cutoff: where the window reaches its end, as a fraction of the cells' Nyquist frequency; nothing passes above.
        truncation: ``extend`` views beyond the detector, or ``ignore`` that they are cut off.

    Raises:
        ValueError: unknown window, backend or truncation, a cutoff outside (0, 1], an arc too short.

    Source: Kak and Slaney, Principles of Computerized Tomographic Imaging, 1988, sections 3.4.1 and 3.4.2;
    Parker, Med. Phys. 9(2), 1982; extension by a cylinder's chords, here of fixed length: Hsieh et al., Med. Phys.
    31(9), 2004.
    """

    def __init__(
        self,
        geometry: FanBeamGeometry,
        window: str = "ram-lak",
        backend: str = "auto",
        cutoff: float = 1.0,
        truncation: str = "extend",
    ) -> None:
        super().__init__(geometry, backend)
        if window not in RAMP_WINDOWS:
            raise ValueError(f"window must be one of {tuple(RAMP_WINDOWS)}, got {window!r}")
        if not 0 < cutoff <= 1:
            raise ValueError(f"cutoff must be in (0, 1], got {cutoff}")
        if truncation not in TRUNCATION:
            raise ValueError(f"truncation must be one of {TRUNCATION}, got {truncation!r}")
        self.window, self.cutoff, self.truncation = window, cutoff, truncation
        self._told = False
        weights = _cell_weights(geometry) * redundancy_weights(geometry) * view_steps(geometry)[:, None]
        # Follow from the geometry: not part of the weights that a state dict holds.
        self.register_buffer("_weights", torch.from_numpy(weights), persistent=False)
        self.register_buffer("_filter", torch.from_numpy(_ramp(geometry, window, cutoff)), persistent=False)
        # Filtering is linear: what it makes of an extension is a fixed row times the end cell's value.
        rows = _filtered_extensions(geometry, window, cutoff)
        self.register_buffer("_extensions", torch.from_numpy(rows), persistent=False)

    def forward(self, sinogram: Tensor) -> Tensor:
        """Reconstruct ``(B, 1, V, D)`` line integrals to ``(B, 1, H, W)`` in 1/mm.

        Raises:
            ValueError: shape does not fit the geometry, or values are not finite.
        """
        sinogram = self._checked(sinogram, self.geometry.sinogram_shape, "sinogram")
        if not self._told:
            self._tell_of_truncation(sinogram.detach())
        filtered = LinearMap.apply(sinogram, self._filter_views, self._filter_views_transpose)
        return self._linear(filtered, "backproject", "backproject_transpose")

    def _filter_views(self, sinogram: Tensor) -> Tensor:
        """Weight, extend and filter ``(B, 1, V, D)``."""
        weights, ramp, before, behind = self._rows_for(sinogram)
        out = torch.empty_like(sinogram)
        for part in self._parts(sinogram):
            weighted, filtered = sinogram[part] * weights, out[part]
            filtered.copy_(_convolve(weighted, ramp))
            if self.truncation == "extend":
                filtered.addcmul_(weighted[..., :1], before).addcmul_(weighted[..., -1:], behind)
        return out

    def _filter_views_transpose(self, filtered: Tensor) -> Tensor:
        """Exact transpose of :meth:`_filter_views`; the filter's kernel is even, so it is its own transpose."""
        weights, ramp, before, behind = self._rows_for(filtered)
        out = torch.empty_like(filtered)
        for part in self._parts(filtered):
            views, weighted = filtered[part], out[part]
            weighted.copy_(_convolve(views, ramp))
            if self.truncation == "extend":
                # No matrix product: autocast would take it in half precision.
                weighted[..., 0] += (views * before).sum(-1)
                weighted[..., -1] += (views * behind).sum(-1)
            weighted *= weights
        return out

    def _rows_for(self, like: Tensor) -> tuple[Tensor, ...]:
        # The buffers are float64; the data says in what precision they are used.
        return *(b.to(like.device, like.dtype) for b in (self._weights, self._filter)), *self._extensions.to(like)

    def _parts(self, value: Tensor) -> Iterator[slice]:
        """Slices that are filtered together: padded views and their spectra are the largest arrays of all."""
        length = 2 * (len(self._filter) - 1)
        count = max(1, _PADDED_SAMPLES // (self.geometry.num_views * length))
        for start in range(0, len(value), count):
            yield slice(start, start + count)

    def _tell_of_truncation(self, sinogram: Tensor) -> None:
        """Say it once when many views of a slice see material at an end of the detector."""
        outer = max(1, self.geometry.num_cells // 64)
        edge = torch.maximum(sinogram[..., :outer].mean(-1), sinogram[..., -outer:].mean(-1))
        # Nearly every scan ends here, before all of its cells are looked at.
        if (edge > _EDGE_LINE_INTEGRAL).double().mean(-1).lt(_EDGE_VIEWS).all():
            return
        cut = edge > (_EDGE_FRACTION * sinogram.amax(-1)).clamp_min(_EDGE_LINE_INTEGRAL)
        share = cut.double().mean(-1).max().item()
        if share < _EDGE_VIEWS:
            return
        self._told = True
        done = (
            f"each view is extended by {_EXTENSION:.0%} of the detector at either end; HU stay uncertain near the edge"
            if self.truncation == "extend"
            else "that is ignored, so HU are wrong, most of all near the edge (see truncation)"
        )
        _log.warning(
            "truncated projections: %.0f %% of the views see material at an end of the detector, whose field of view "
            "has a radius of %.1f mm; %s",
            *(100 * share, self.geometry.field_of_view_radius, done),
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window={self.window!r}, cutoff={self.cutoff}, truncation={self.truncation!r}"


def _convolve(views: Tensor, ramp: Tensor) -> Tensor:
    """Views ``(..., D)`` filtered by a frequency response."""
    length = 2 * (len(ramp) - 1)
    spectrum = torch.fft.rfft(views, n=length)
    spectrum *= ramp
    return torch.fft.irfft(spectrum, n=length)[..., : views.shape[-1]]


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


def _filtered_extensions(geometry: FanBeamGeometry, window: str, cutoff: float) -> np.ndarray:
    """What the filter adds to a view, ``(2, D)``, by the extension before its first and behind its last cell.

    Each for a weighted view that ends in 1. An extension falls to 0 as a cylinder's chords do, a quarter ellipse, and
    is weighted by the cosine of its own fan angles.
    """
    cells = geometry.num_cells
    reach = max(1, round(_EXTENSION * cells))
    position = (np.arange(-reach, cells + reach) - geometry.center_cell) * geometry.cell_pitch
    fan = position / geometry.source_to_detector
    weights = np.cos(np.arctan(fan) if geometry.detector == "flat" else fan)
    roll_off = np.sqrt(1 - (np.arange(1, reach + 1) / (reach + 1)) ** 2)
    wide = np.zeros((2, cells + 2 * reach))
    wide[0, :reach] = roll_off[::-1] * weights[:reach] / weights[reach]
    wide[1, -reach:] = roll_off * weights[-reach:] / weights[-reach - 1]
    ramp = _ramp(geometry, window, cutoff, extra=reach)
    length = 2 * (len(ramp) - 1)
    return np.fft.irfft(np.fft.rfft(wide, n=length) * ramp, n=length)[:, reach : reach + cells]


def _ramp(geometry: FanBeamGeometry, window: str, cutoff: float, extra: int = 0) -> np.ndarray:
    """Frequency response of the windowed ramp, ``(length / 2 + 1,)``, in 1/mm, from the band-limited kernel.

    The kernel, not the ramp itself, is transformed: that keeps the mean of a cut-off view, and so HU, right. It is
    long enough for views that have `extra` cells at one end.
    """
    cells = geometry.num_cells + extra
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
