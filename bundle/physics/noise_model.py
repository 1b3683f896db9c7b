"""The photon number and the electronic noise of a scan, from its own noisy line integrals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .dose import line_integral_variance

# Shapes in this file: S slices, V views, D detector cells.

#: Width of the bins in which the variance is measured, in line integrals.
BIN_WIDTH = 0.25

#: Of the rays of a slice in a bin, the share whose neighbourhood is smoothest.
SMOOTHEST = 0.3

#: Bins with fewer rays say nothing.
LEAST_RAYS = 200

#: Mean count below which the logarithm's floor may have cut the noise.
LEAST_COUNT = 20.0

#: No scanner counts as many photons a ray: what is measured is rounding, not noise.
MOST_PHOTONS = 1e9

#: Share of neighbouring second differences of opposite sign. White noise has 1/2 + asin(2/3)/pi = .73, a smooth signal
#: near 0; below this the differences are the object's own.
LEAST_ALTERNATION = 0.6

#: Largest relative standard error of the photon number that counts as a measurement.
LARGEST_ERROR = 0.2


@dataclass(frozen=True, kw_only=True)
class NoiseModel:
    """Noise of a scan: ``var(p) = (e^p / N0)(1 + s e^p / N0)``.

    Args:
        incident_photons: ``N0``, incident photons a ray of this scan (photons at normal dose times dose).
        electronic_variance: ``s``, variance of the electronic noise, photons squared.
        incident_photons_error: standard error of ``incident_photons``; 0 where it was given.
        electronic_variance_error: likewise.
        rays: rays that the estimate rests on; 0 where both were given.

    Raises:
        ValueError: ``incident_photons`` not positive, ``electronic_variance`` negative, or not finite.
    """

    incident_photons: float
    electronic_variance: float = 0.0
    incident_photons_error: float = 0.0
    electronic_variance_error: float = 0.0
    rays: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.incident_photons) and self.incident_photons > 0):
            raise ValueError(f"incident_photons must be a positive number, got {self.incident_photons}")
        if not (math.isfinite(self.electronic_variance) and self.electronic_variance >= 0):
            raise ValueError(f"electronic_variance must be zero or more, got {self.electronic_variance}")

    @property
    def significant_electronic_variance(self) -> float:
        """``s``; 0 where it was measured and lies within two standard errors of 0."""
        return 0.0 if self.electronic_variance < 2 * self.electronic_variance_error else self.electronic_variance

    def variance(self, line_integrals: Tensor) -> Tensor:
        """Variance of noisy line integrals around the noise-free ``line_integrals``, any shape."""
        return line_integral_variance(
            line_integrals, self.incident_photons, electronic_variance=self.electronic_variance
        )


def estimate_noise_model(
    line_integrals: Tensor | Sequence[Tensor], electronic_variance: float | None = None
) -> NoiseModel:
    """Measure photon number and electronic variance of a scan on its noisy line integrals alone.

    The transmission ``t = exp(-p)`` is a count divided by ``N0``, so its variance is a straight line in its mean,
    ``var(t) = t / N0 + s / N0^2``, exactly (that of ``p`` is one only to first order). The variance is taken from
    second differences along the views, ``(t[v-1] - 2 t[v] + t[v+1]) / sqrt(6)``: views are sampled more finely than
    cells, their noise is independent even where neighbouring cells share light, and a cell's own error cancels. In
    each bin of ``p`` only the rays whose neighbourhood is smoothest count, judged by derivatives that are
    uncorrelated with the difference for white noise, and their variance is the squared median absolute deviation.
    The line is then fitted, each bin weighted by its standard error.

    What the estimate cannot know: a beam filter that gives each cell its own ``N0`` (the result is an average), noise
    that was filtered along the views (the number of photons comes out too high), and detail of the object finer than
    a view (too low: a few percent at normal dose in projected CT images).

    Args:
        line_integrals: noisy ``p``, ``(V, D)`` or ``(..., V, D)``, or a sequence of such of scans with the same noise.
        electronic_variance: where it is known; only ``N0`` is measured then, which needs no range of ``p``.

    Returns:
        The noise model with standard errors. A fit below zero electronic variance is repeated with zero.

    Raises:
        ValueError: another shape, values not finite, or data that cannot tell: no noise, detail coarser than the
            views, too few rays, or line integrals all alike.

    Source: the law is that of Beer-Lambert and Poisson with additive noise (Ma et al., Med. Phys. 39(7), 2012,
    "Variance analysis of x-ray CT sinograms in the presence of electronic noise background"); median absolute
    deviation after Hampel, J. Am. Stat. Assoc. 69, 1974.
    """
    scans = [line_integrals] if isinstance(line_integrals, Tensor) else list(line_integrals)
    if not scans:
        raise ValueError("line_integrals must hold at least one sinogram, got none")
    if electronic_variance is not None and not (math.isfinite(electronic_variance) and electronic_variance >= 0):
        raise ValueError(f"electronic_variance must be zero or more, or None, got {electronic_variance}")
    bins: dict[int, list[Tensor]] = {}
    opposite = total = 0
    for scan in scans:
        if scan.ndim < 2 or scan.shape[-2] < 6 or scan.shape[-1] < 3 or not scan.numel():
            raise ValueError(
                f"line_integrals must be (..., views, cells) with 6 views and 3 cells or more, got {tuple(scan.shape)}"
            )
        if not torch.isfinite(scan).all():
            raise ValueError("line_integrals has NaN or infinite values")
        for sinogram in scan.detach().reshape(-1, *scan.shape[-2:]):
            found, signs = _differences(sinogram.double())
            for key, value in found.items():
                bins.setdefault(key, []).append(value)
            opposite, total = opposite + signs[0], total + signs[1]
    counted = [torch.cat(bins[key], dim=1) for key in sorted(bins)]
    counted = [values for values in counted if values.shape[1] >= LEAST_RAYS]
    if not counted:
        raise ValueError(
            f"line_integrals must have {LEAST_RAYS} rays of about the same value or more, none has: too small a scan, "
            "or no noise in it"
        )
    if opposite < LEAST_ALTERNATION * total:
        raise ValueError(
            "line_integrals show no noise above the object's own detail: "
            f"{opposite / max(total, 1):.0%} of neighbouring differences have opposite signs, noise has 73 %"
        )
    level = torch.stack([values[0].mean() for values in counted])
    variance = torch.stack([(1.4826 * values[1].abs().median()) ** 2 for values in counted])
    rays = torch.tensor([values.shape[1] for values in counted], dtype=torch.float64)
    return _fit(level, variance, rays, electronic_variance)


def _differences(sinogram: Tensor) -> tuple[dict[int, Tensor], tuple[int, int]]:
    """Mean transmission and noise difference ``(2, n)`` of the smoothest rays of each bin; opposite signs, of how many.

    Five views and three cells make a neighbourhood; rows of the stencils run along the views.
    """
    transmission = torch.exp(-sinogram)
    rows = transmission.unfold(0, 5, 1)  # (V - 4, D, 5)
    wide = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 3
    stencils = torch.tensor(
        [[1, 1, 1, 1, 1], [2, 1, 0, -1, -2], [3, -2, -2, -2, 3]], dtype=torch.float64, device=sinogram.device
    )
    level = (wide @ stencils[0]) / 5
    # First and second derivative along the views: orthogonal to the difference, so choosing by them chooses no noise.
    roughness = (wide @ stencils[1]) ** 2 / 10 + (wide @ stencils[2]) ** 2 / 30
    centre = rows[:, 1:-1]
    difference = (centre[..., 1] - 2 * centre[..., 2] + centre[..., 3]) / math.sqrt(6)
    usable = (level > 0) & ~_near_clipped(sinogram)[2:-2, 1:-1]
    signs = torch.sign(difference)
    index = torch.floor(-torch.log(level.clamp_min(1e-30)) / BIN_WIDTH)
    found, opposite, total = {}, 0, 0
    for key in torch.unique(index[usable]).tolist():
        chosen = usable & (index == key)
        limit = roughness[chosen].kthvalue(max(1, int(SMOOTHEST * int(chosen.sum())))).values
        chosen &= roughness <= limit
        found[int(key)] = torch.stack([level[chosen], difference[chosen]])
        pairs = signs[:-1][chosen[:-1]] * signs[1:][chosen[:-1]]
        opposite, total = opposite + int((pairs < 0).sum()), total + pairs.numel()
    return found, (opposite, total)


def _near_clipped(sinogram: Tensor) -> Tensor:
    """Rays within two views or cells of one that was cut: exactly 0, or the greatest value if several share it."""
    greatest = sinogram == sinogram.max()
    clipped = sinogram == 0
    if int(greatest.sum()) > 2:
        clipped = clipped | greatest
    near = torch.nn.functional.max_pool2d(clipped[None, None].float(), 5, stride=1, padding=2)
    return near[0, 0] > 0


def _fit(level: Tensor, variance: Tensor, rays: Tensor, electronic_variance: float | None) -> NoiseModel:
    """Weighted line through variance against mean transmission, one entry a bin."""
    # Relative standard error of a squared median absolute deviation, neighbouring differences being correlated.
    relative = 2 * torch.sqrt(1.36 * 2 / rays)
    if not (variance > 0).all():
        level, variance, relative, rays = (values[variance > 0] for values in (level, variance, relative, rays))
    if not len(level):
        raise ValueError("line_integrals have no noise: their differences along the views are zero")
    used, expected = torch.ones_like(level, dtype=torch.bool), variance
    for _ in range(5):
        weight = 1 / (relative * expected)[used] ** 2
        if electronic_variance is None:
            slope, offset, slope_error, offset_error, mixed = _line(level[used], variance[used], weight)
        else:
            slope, slope_error = _slope(level[used], variance[used], weight, electronic_variance)
            offset, offset_error, mixed = electronic_variance * slope**2, 0.0, 0.0
        if not (math.isfinite(slope) and slope > 0):
            raise ValueError(_cannot_tell(level))
        if offset < 0:
            slope, offset = _slope(level[used], variance[used], weight, 0.0)[0], 0.0
        expected = slope * level + offset
        enough = level / slope >= LEAST_COUNT
        used = enough if enough.any() else used
    photons = 1 / slope
    if photons > MOST_PHOTONS:
        raise ValueError(f"line_integrals have no noise: it would be that of {photons:.2g} photons a ray")
    if not slope_error * photons <= LARGEST_ERROR:
        raise ValueError(_cannot_tell(level))
    estimate = electronic_variance
    estimate_error = 0.0
    if electronic_variance is None:
        estimate = offset * photons**2
        # s = offset / slope^2: both errors, and what they share.
        by_offset, by_slope = photons**2, -2 * offset * photons**3
        square = by_offset**2 * offset_error**2 + by_slope**2 * slope_error**2 + 2 * by_offset * by_slope * mixed
        estimate_error = math.sqrt(max(square, 0.0))
    return NoiseModel(
        incident_photons=photons,
        electronic_variance=estimate,
        incident_photons_error=slope_error * photons**2,
        electronic_variance_error=estimate_error,
        rays=int(rays[used].sum()),
    )


def _line(x: Tensor, y: Tensor, weight: Tensor) -> tuple[float, float, float, float, float]:
    """Slope and offset by weighted least squares, their standard errors, and their covariance."""
    total, first, second = (float((weight * x**k).sum()) for k in range(3))
    determinant = total * second - first**2
    if len(x) < 2 or determinant <= 1e-12 * total * second:
        return (math.nan,) * 5
    values, products = float((weight * y).sum()), float((weight * x * y).sum())
    slope, offset = (
        (total * products - first * values) / determinant,
        (second * values - first * products) / determinant,
    )
    # A line that misses the bins by more than their errors is known less well than they say.
    misfit = float((weight * (y - slope * x - offset) ** 2).sum()) / max(len(x) - 2, 1)
    scale = max(1.0, misfit) / determinant
    return slope, offset, math.sqrt(total * scale), math.sqrt(second * scale), -first * scale


def _slope(x: Tensor, y: Tensor, weight: Tensor, electronic_variance: float) -> tuple[float, float]:
    """``a`` of ``y = a x + s a^2`` with known ``s``, and its standard error: each bin has its own, then their mean."""
    s = electronic_variance
    each = y / x if s == 0 else 2 * y / (x + torch.sqrt(x**2 + 4 * s * y))
    weight = weight * (x + 2 * s * each) ** 2
    slope = float((weight * each).sum() / weight.sum())
    misfit = float((weight * (each - slope) ** 2).sum()) / max(len(x) - 1, 1)
    return slope, math.sqrt(max(1.0, misfit) / float(weight.sum()))


def _cannot_tell(level: Tensor) -> str:
    low, high = (-math.log(float(value)) for value in (level.max(), level.min()))
    return (
        f"line_integrals, between {low:.2f} and {high:.2f}, cannot tell photons from electronic noise: a wider range "
        "is needed, more rays, or electronic_variance as an argument"
    )
