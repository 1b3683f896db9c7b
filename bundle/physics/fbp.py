"""Filtered backprojection of fan-beam sinograms: HU-true, and with an exact gradient."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from .backends import is_recorded
from .geometry import FanBeamGeometry
from .projector import FanBeamOperator, linear_map
from .units import MU_WATER

#: Windows on the ramp filter, by frequency as a fraction of the cells' Nyquist frequency.
RAMP_WINDOWS = {
    "ram-lak": lambda f: np.ones_like(f),
    "shepp-logan": lambda f: np.sinc(f / 2),
    "cosine": lambda f: np.cos(np.pi * f / 2),
    "hann": lambda f: (1 + np.cos(np.pi * f)) / 2,
}

#: What is done with a view that the detector cuts off.
TRUNCATION = ("extend", "ignore")

# Most cells of the extension at either end, and those whose slope it goes on with, as fractions of the detector.
_REACH, _SLOPE = 0.3, 0.04
# Line integral at a view's end up to which it is air, noise included; and one that is small beside an object's, by
# which the extension's steep end is rounded off, so that its derivative stays bounded.
_AIR, _ROUNDING = 0.1, 0.2
# A view counts as cut off where its outer cells see more than both: air noise stays far below (5 mm of water, and a
# fraction of the view's largest line integral). A scan is said to be truncated from this share of such views on.
_EDGE_LINE_INTEGRAL, _EDGE_FRACTION, _EDGE_VIEWS = 0.1, 0.05, 0.05

# Padded samples that are filtered at a time, in whole slices: some 50 MB in float32.
_PADDED_SAMPLES = 2**22

_log = logging.getLogger(__name__)


class FilteredBackprojection(FanBeamOperator):
    """Fan-beam FBP: line integrals in, attenuation in 1/mm out. Differentiable, and its gradient is exact.

    Every view is weighted by the ray's obliqueness and redundancy (one half for a full scan, Parker's weights for a
    shorter arc), filtered by the windowed ramp, and backprojected with the squared inverse distance to the source.

    Truncated projections, of an object wider than the detector, would be filtered as if air began at the last cell:
    a bright rim and wrong HU all over. So each view goes on beyond either end as the chords of the water cylinder that
    has the view's value and slope there, down to 0: for objects that stick out a little as for those far wider (bone
    that begins to stick out is taken for too much water, and is no better than ignored). Where the end cell sees air
    there is nothing to go on with: what is not truncated stays as it is, and there the reconstruction is linear in the
    sinogram. The log names the truncation once.

    Args:
        geometry: scan and image grid. An arc below 180 degrees + fan angle can't be reconstructed.
        window: ``ram-lak``, ``shepp-logan``, ``cosine`` or ``hann``.
        backend: as for :class:`FanBeamProjector`.
        cutoff: where the window reaches its end, as a fraction of the cells' Nyquist frequency; nothing passes above.
            For ``ram-lak``, which has no slope of its own, a hard cut. Lower is softer: less noise, wider edges.
        truncation: ``extend`` views beyond the detector, or ``ignore`` that they are cut off.

    Raises:
        ValueError: unknown window, backend or truncation, a cutoff outside (0, 1], an arc too short.

    Source: Kak and Slaney, Principles of Computerized Tomographic Imaging, 1988, sections 3.4.1 and 3.4.2;
    Parker, Med. Phys. 9(2), 1982; extension by the chords of a water cylinder: Hsieh et al., Med. Phys. 31(9), 2004.
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
        if not isinstance(cutoff, Real) or not 0 < cutoff <= 1:
            raise ValueError(f"cutoff must be in (0, 1], got {cutoff!r}")
        if truncation not in TRUNCATION:
            raise ValueError(f"truncation must be one of {TRUNCATION}, got {truncation!r}")
        self.window, self.cutoff, self.truncation = window, cutoff, truncation
        self._told = False
        self._reach = max(1, round(_REACH * geometry.num_cells))
        by_ray = redundancy_weights(geometry) * view_steps(geometry)[:, None]
        cosines = np.cos(_fan_angles(geometry, self._reach))
        inside, ends = cosines[self._reach : -self._reach], np.stack([cosines[: self._reach], cosines[-self._reach :]])
        # They follow from the geometry, so no state dict holds them; and no buffers, as half() would coarsen those.
        self._rows = tuple(
            torch.from_numpy(np.ascontiguousarray(rows))
            for rows in (
                inside * by_ray,
                ramp_response(geometry, window, cutoff),
                # What lies beyond the detector is as redundant as the cell at its end.
                ends * by_ray[:, [0, -1], None],
                ramp_response(geometry, window, cutoff, extra=self._reach),
            )
        )
        self._converted: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    def forward(self, sinogram: Tensor) -> Tensor:
        """Reconstruct ``(B, 1, V, D)`` line integrals to ``(B, 1, H, W)`` in 1/mm.

        Raises:
            ValueError: shape does not fit the geometry, or values are not finite.
        """
        sinogram = self._checked(sinogram, self.geometry.sinogram_shape, "sinogram")
        if not self._told and not is_recorded():
            self._tell_of_truncation(sinogram.detach())
        filtered = linear_map(sinogram, self._filter_views, self._filter_views_transpose)
        beyond = self._extension(sinogram) if self.truncation == "extend" else None
        if beyond is not None:
            filtered = filtered + linear_map(beyond, self._filter_extension, self._filter_extension_transpose)
        return self._linear(filtered, "backproject", "backproject_transpose")

    def _filter_views(self, sinogram: Tensor) -> Tensor:
        """Weight and filter ``(B, 1, V, D)``."""
        weights, ramp, _, _ = self._rows_for(sinogram)
        out = torch.empty_like(sinogram)
        for part in self._parts(sinogram, ramp):
            out[part] = _convolve(sinogram[part] * weights, ramp)
        return out

    def _filter_views_transpose(self, filtered: Tensor) -> Tensor:
        """Exact transpose of :meth:`_filter_views`; the filter's kernel is even, so it is its own transpose."""
        weights, ramp, _, _ = self._rows_for(filtered)
        out = torch.empty_like(filtered)
        for part in self._parts(filtered, ramp):
            out[part] = _convolve(filtered[part], ramp) * weights
        return out

    def _extension(self, sinogram: Tensor) -> Tensor | None:
        """Line integrals before and behind each view, ``(B, 1, V, 2, cells beyond)``, from left to right.

        The square of a cylinder's chord is a parabola across its rays, of one curvature for all cylinders of water:
        ``p(d)^2 = p^2 + s d - (2 mu d)^2`` at the distance `d` beyond the end, `s` the slope of the squares. None where
        every view ends in air.
        """
        pitch = _pitch_at_center(self.geometry)
        count = max(2, round(_SLOPE * self.geometry.num_cells))
        ends = torch.stack([sinogram[..., :count].flip(-1), sinogram[..., -count:]], -2).clamp_min(0).square()
        # Least squares: the line's slope, which is the parabola's in the middle of the cells, carried to the end.
        place = torch.arange(count, dtype=ends.dtype, device=ends.device) - (count - 1) / 2
        slope = (ends * place).sum(-1) / (place.square().sum() * pitch) - (2 * MU_WATER) ** 2 * (count - 1) * pitch
        slope = slope.clamp_max(0)[..., None]
        level = ends[..., -1:] - _AIR**2
        if not is_recorded() and not (level > 0).any():
            return None
        distance = torch.arange(1, self._reach + 1, dtype=ends.dtype, device=ends.device) * pitch
        square = (level + slope * distance - (2 * MU_WATER * distance).square()).clamp_min(0)
        chords = square / (square + _ROUNDING**2).sqrt()
        before, behind = chords.unbind(-2)
        return torch.stack([before.flip(-1), behind], -2)

    def _filter_extension(self, beyond: Tensor) -> Tensor:
        """What the filter adds to the views ``(B, 1, V, D)`` by what lies beyond them."""
        _, _, weights, ramp = self._rows_for(beyond)
        out = beyond.new_empty(*beyond.shape[:-2], self.geometry.num_cells)
        for part in self._parts(beyond, ramp):
            before, behind = (beyond[part] * weights).unbind(-2)
            # Views wrap around in the transform: what lies before the first cell stands at its very end.
            gap = before.new_zeros(*before.shape[:-1], 2 * (len(ramp) - 1) - self.geometry.num_cells - 2 * self._reach)
            wide = torch.cat([before.new_zeros(*before.shape[:-1], self.geometry.num_cells), behind, gap, before], -1)
            out[part] = _convolve(wide, ramp)[..., : self.geometry.num_cells]
        return out

    def _filter_extension_transpose(self, filtered: Tensor) -> Tensor:
        """Exact transpose of :meth:`_filter_extension`."""
        _, _, weights, ramp = self._rows_for(filtered)
        out = filtered.new_empty(*filtered.shape[:-1], 2, self._reach)
        cells = self.geometry.num_cells
        for part in self._parts(filtered, ramp):
            wide = _convolve(filtered[part], ramp, whole=True)
            before, behind = wide[..., -self._reach :], wide[..., cells : cells + self._reach]
            out[part] = torch.stack([before, behind], -2) * weights
        return out

    def _rows_for(self, like: Tensor) -> tuple[Tensor, ...]:
        """Weights and filter of the views, and of what lies beyond them: where the data is, in its precision."""
        key = like.device, like.dtype
        if key in self._converted:
            return self._converted[key]
        rows = tuple(row.to(like.dtype).to(like.device) for row in self._rows)
        if not is_recorded():
            self._converted[key] = rows
        return rows

    def _parts(self, value: Tensor, ramp: Tensor) -> Iterator[slice]:
        """Slices that are filtered together: padded views and their spectra are the largest arrays of all."""
        if is_recorded():
            # For any number of slices.
            yield slice(None)
            return
        length = 2 * (len(ramp) - 1)
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
            "views are extended beyond the detector as a cylinder of water would be; HU stay uncertain near the edge"
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


def _convolve(views: Tensor, ramp: Tensor, whole: bool = False) -> Tensor:
    """Views ``(..., D)`` filtered by a frequency response, as long as before, or the transform's `whole` length."""
    length = 2 * (len(ramp) - 1)
    spectrum = torch.fft.rfft(views, n=length)
    spectrum *= ramp
    filtered = torch.fft.irfft(spectrum, n=length)
    return filtered if whole else filtered[..., : views.shape[-1]]


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


def _fan_angles(geometry: FanBeamGeometry, extra: int) -> np.ndarray:
    """Fan angles of the cells, and of `extra` cells more at either end."""
    cells = np.arange(-extra, geometry.num_cells + extra)
    position = (cells - geometry.center_cell) * geometry.cell_pitch / geometry.source_to_detector
    return np.arctan(position) if geometry.detector == "flat" else position


def _pitch_at_center(geometry: FanBeamGeometry) -> float:
    """Distance of the cells as seen at the rotation centre, mm."""
    return geometry.cell_pitch * geometry.source_to_center / geometry.source_to_detector


def ramp_response(geometry: FanBeamGeometry, window: str, cutoff: float, extra: int = 0) -> np.ndarray:
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
    if geometry.detector == "equiangular":
        step = geometry.cell_pitch / geometry.source_to_detector
        with np.errstate(invalid="ignore", divide="ignore"):
            stretch = np.where(n == 0, 1.0, n * step / np.sin(n * step))
        # Beyond the widest pair of cells the kernel is never used; there sin passes zero.
        kernel = kernel * np.where(np.abs(n) < cells, stretch, 1.0) ** 2
    frequency = np.fft.rfftfreq(length) * 2 / cutoff
    shape = np.where(frequency <= 1 + 1e-12, RAMP_WINDOWS[window](np.minimum(frequency, 1.0)), 0.0)
    return np.fft.rfft(kernel).real * shape / _pitch_at_center(geometry)
