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
        ValueError: ``photons``, ``dose`` or ``floor`` not positive, ``electronic_variance`` negative, values not finite.

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
    line_integrals: Tensor, photons: float, *, dose: float = 1.0, electronic_variance: float = 0.0
) -> Tensor:
    """Variance of noisy line integrals, to first order: ``(1 / N)(1 + electronic_variance / N)``, N the mean count.

    Args:
        line_integrals: noise-free (or smoothed) ``p``, any shape.
        photons: incident photons a ray at normal dose.
        dose: fraction of the normal dose.
        electronic_variance: as in :func:`simulate_low_dose`.

    Raises:
        ValueError: ``photons`` or ``dose`` not positive.
    """
    counts = _incident(photons, dose) * torch.exp(-line_integrals)
    return (1 + electronic_variance / counts) / counts


def _incident(photons: float, dose: float) -> float:
    for name, value in (("photons", photons), ("dose", dose)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value}")
    return photons * dose
