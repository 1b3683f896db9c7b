"""Low dose: photons counted, and what their noise does to line integrals."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def simulate_low_dose(
    line_integrals: Tensor,
    photons: float,
    *,
    dose: float = 1.0,
    electronic_variance: float = 0.0,
    floor: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Noisy line integrals of a scan with ``dose * photons`` incident photons a ray.

    ``I = Poisson(dose photons exp(-p)) + Normal(0, electronic_variance)``,
    ``p_low = -ln(max(I, floor) / (dose photons))``.

    Args:
        line_integrals: noise-free ``p``, any shape, no unit.
        photons: incident photons a ray at normal dose.
        dose: fraction of the normal dose.
        electronic_variance: variance of the detector's electronic noise, in photons squared.
        floor: least count before the logarithm.
        generator: source of the random numbers, on the tensor's device; the same seed gives the same noise.

    Returns:
        Noisy line integrals, shape and dtype of the input.

    Raises:
        ValueError: ``photons``, ``dose`` or ``floor`` not positive, ``electronic_variance`` negative, or values not
            finite.

    Source: method of CoreDiff, IEEE TMI 2023 (arXiv 2304.01814), and Yu et al., J. Comput. Assist. Tomogr. 36(4), 2012.
    """
    incident = _incident(photons, dose)
    for name, value, least in (("electronic_variance", electronic_variance, 0.0), ("floor", floor, 1e-6)):
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"{name} must be {'positive' if least else 'zero or more'}, got {value}")
    if not torch.isfinite(line_integrals).all():
        raise ValueError("line_integrals has NaN or infinite values")
    # In float64: float32 Poisson rates above 2^24 would lose single photons.
    rate = incident * torch.exp(-line_integrals.double())
    counts = torch.poisson(rate, generator=generator)
    if electronic_variance > 0:
        noise = torch.randn(counts.shape, dtype=counts.dtype, device=counts.device, generator=generator)
        counts = counts + math.sqrt(electronic_variance) * noise
    return (-torch.log(counts.clamp_min(floor) / incident)).to(line_integrals.dtype)


def line_integral_variance(
    line_integrals: Tensor, photons: float, *, dose: float | Tensor = 1.0, electronic_variance: float = 0.0
) -> Tensor:
    """Variance of noisy line integrals, to first order: ``(1 / N)(1 + electronic_variance / N)``, N the mean count.

    Args:
        line_integrals: noise-free (or smoothed) ``p``, any shape.
        photons: incident photons a ray at normal dose.
        dose: fraction of the normal dose; a tensor that broadcasts where scans differ.
        electronic_variance: as in :func:`simulate_low_dose`.

    Raises:
        ValueError: ``photons`` or ``dose`` not positive.
    """
    counts = _incident(photons, dose) * torch.exp(-line_integrals)
    return (1 + electronic_variance / counts) / counts


def thin_line_integrals(
    line_integrals: Tensor,
    photons: float,
    fraction: float,
    *,
    dose: float = 1.0,
    floor: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Two scans of lower dose out of one: each photon goes to the first with probability ``fraction``.

    Binomial parts of a Poisson count are independent Poisson counts: both parts see the same patient at
    ``fraction * dose`` and ``(1 - fraction) * dose``, at full resolution, and share no noise but the electronic one.

    Args:
        line_integrals: noisy ``p``, any shape, no unit.
        photons: incident photons a ray at normal dose.
        fraction: share of the first part, between 0 and 1.
        dose: fraction of the normal dose that the scan was taken with.
        floor: least count before the logarithm.
        generator: source of the random numbers, on the tensor's device.

    Returns:
        Line integrals of both parts, shape and dtype of the input.

    Raises:
        ValueError: ``fraction`` not inside (0, 1), ``photons``, ``dose`` or ``floor`` not positive, values not finite.

    Source: binomial splitting of a Poisson variable (Kingman, Poisson Processes, 1993, section 5.1).
    """
    incident = _incident(photons, dose)
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    if not (math.isfinite(floor) and floor > 0):
        raise ValueError(f"floor must be positive, got {floor}")
    if not torch.isfinite(line_integrals).all():
        raise ValueError("line_integrals has NaN or infinite values")
    counts = torch.round(incident * torch.exp(-line_integrals.double()))
    first = torch.binomial(counts, torch.full_like(counts, fraction), generator=generator)
    parts = (first, fraction), (counts - first, 1 - fraction)
    first, second = (-torch.log(part.clamp_min(floor) / (share * incident)) for part, share in parts)
    return first.to(line_integrals.dtype), second.to(line_integrals.dtype)


def _incident(photons: float, dose: float | Tensor) -> float | Tensor:
    for name, value in (("photons", photons), ("dose", dose)):
        least, most = (value.min().item(), value.max().item()) if isinstance(value, Tensor) else (value, value)
        if not (least > 0 and math.isfinite(most)):
            raise ValueError(f"{name} must be a positive number, got {least}")
    return photons * dose
