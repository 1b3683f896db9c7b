"""Low dose: photons counted, and what their noise does to line integrals."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

#: Mean counts from which on a ray's logarithm is corrected; below, the floor hides what the mean count was.
LEAST_COUNT = 2.0


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
    _check_noise(electronic_variance, floor)
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
    line_integrals: Tensor,
    photons: float | Tensor,
    *,
    dose: float | Tensor = 1.0,
    electronic_variance: float | Tensor = 0.0,
) -> Tensor:
    """Variance of noisy line integrals, to first order: ``(1 / N)(1 + electronic_variance / N)``, N the mean count.

    Args:
        line_integrals: noise-free (or smoothed) ``p``, any shape.
        photons: incident photons a ray at normal dose; a tensor that broadcasts where scans differ.
        dose: fraction of the normal dose; a tensor likewise.
        electronic_variance: as in :func:`simulate_low_dose`; a tensor likewise.

    Raises:
        ValueError: ``photons`` or ``dose`` not positive.
    """
    counts = _incident(photons, dose) * torch.exp(-line_integrals)
    return (1 + electronic_variance / counts) / counts


def noise_level(
    line_integrals: Tensor, photons: float | Tensor, *, electronic_variance: float | Tensor = 0.0
) -> Tensor:
    """Standard deviation of noisy line integrals, :func:`line_integral_variance`, at most that of one count.

    A ray of less than one photon on average tells nothing; this also bounds the exponential. No gradient.

    Args:
        line_integrals: noise-free (or smoothed) ``p``, any shape.
        photons: incident photons a ray of this scan; a tensor that broadcasts where scans differ.
        electronic_variance: variance of the electronic noise, photons squared; a number or a tensor likewise.

    Raises:
        ValueError: ``photons`` not positive.
    """
    starved = torch.as_tensor(photons).to(line_integrals).log().clamp_min(0)
    line_integrals = torch.minimum(line_integrals.detach(), starved)
    return line_integral_variance(line_integrals, photons, electronic_variance=electronic_variance).sqrt()


def log_bias(
    mean: Tensor,
    photons: float,
    *,
    dose: float = 1.0,
    electronic_variance: float = 0.0,
    floor: float = 1.0,
) -> Tensor:
    """What the logarithm of few counts adds to a line integral on average: the ``b`` with ``p + b(p) = mean``.

    ``b`` is about half of :func:`line_integral_variance` where photons are many; where they are few it follows from the
    exact distribution of ``ln(max(Poisson + Normal, floor))``. Subtracted from a noisy sinogram it takes out the HU
    shift of starved rays and leaves noise as it is.

    Args:
        mean: expected noisy line integrals (what a denoiser makes of them), any shape.
        photons: incident photons a ray at normal dose.
        dose: fraction of the normal dose.
        electronic_variance: variance of the electronic noise, photons squared.
        floor: least count before the logarithm.

    Returns:
        The bias, shape and dtype of ``mean``; that of :data:`LEAST_COUNT` where fewer counts are expected.

    Raises:
        ValueError: an argument that cannot be.

    Source: the log-normal-Poisson bias of Fu et al., IEEE TMI 36(2), 2017, section II; the inverse table is ours.
    """
    incident = _incident(photons, dose)
    _check_noise(electronic_variance, floor)
    log_counts, log_means = _log_of_counts(float(electronic_variance), float(floor))
    # log_means falls short of log_counts by the bias, and grows with it.
    seen = math.log(incident) - mean.detach().double().cpu().numpy()
    bias = np.interp(seen, log_means, log_counts - log_means)
    return torch.from_numpy(np.asarray(bias)).to(mean)


def expected_log_bias(
    line_integrals: Tensor,
    photons: float,
    *,
    dose: float = 1.0,
    electronic_variance: float = 0.0,
    floor: float = 1.0,
) -> Tensor:
    """The bias of :func:`log_bias`, where the noise-free line integrals are known and not the noisy ones' mean.

    Args:
        line_integrals: noise-free ``p``, any shape.
        photons: incident photons a ray at normal dose.
        dose: fraction of the normal dose.
        electronic_variance: variance of the electronic noise, photons squared.
        floor: least count before the logarithm.

    Returns:
        ``E[-ln(max(I, floor) / I0)] - p``, shape and dtype of the input; that of :data:`LEAST_COUNT` where fewer
        counts are expected.

    Raises:
        ValueError: an argument that cannot be.
    """
    incident = _incident(photons, dose)
    _check_noise(electronic_variance, floor)
    log_counts, log_means = _log_of_counts(float(electronic_variance), float(floor))
    expected = math.log(incident) - line_integrals.detach().double().cpu().numpy()
    bias = np.interp(expected, log_counts, log_counts - log_means)
    return torch.from_numpy(np.asarray(bias)).to(line_integrals)


@functools.lru_cache(maxsize=32)
def _log_of_counts(electronic_variance: float, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """``ln L`` and ``E ln(max(Poisson(L) + Normal, floor))``, growing."""
    # Up to here by summing over all counts; beyond, the moments suffice.
    most = 300.0
    few = np.geomspace(LEAST_COUNT, most, 160)
    counts = np.arange(int(most + 12 * math.sqrt(most)) + 1)
    log_factorial = np.cumsum(np.log(np.maximum(counts, 1)))
    weight = np.exp(counts * np.log(few)[:, None] - few[:, None] - log_factorial)
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(41 if electronic_variance > 0 else 1)
    noisy = counts[:, None] + math.sqrt(electronic_variance) * nodes
    log_noisy = np.log(np.maximum(noisy, floor)) @ (node_weights / node_weights.sum())
    many = np.geomspace(most, 1e9, 240)[1:]
    second, third = (many + electronic_variance) / many**2, 1 / many**2
    series = np.log(many) - second / 2 + third / 3 - 3 * second**2 / 4
    counts_of_means = np.concatenate([few, many])
    return np.log(counts_of_means), np.concatenate([weight @ log_noisy, series])


def thin_line_integrals(
    line_integrals: Tensor,
    photons: float,
    fraction: float,
    *,
    dose: float = 1.0,
    electronic_variance: float = 0.0,
    floor: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Two scans of lower dose out of one: each photon goes to the first with probability ``fraction``.

    Binomial parts of a Poisson count are independent Poisson counts: both parts see the same patient at
    ``fraction * dose`` and ``(1 - fraction) * dose``, at full resolution. The electronic noise would be shared by both;
    what the first part is given of ``Normal(0, fraction (1 - fraction) electronic_variance)``, the second loses, and
    that makes the parts uncorrelated. Each then has its share of the electronic variance: ``fraction`` and
    ``1 - fraction`` of it.

    Args:
        line_integrals: noisy ``p``, any shape, no unit.
        photons: incident photons a ray at normal dose.
        fraction: share of the first part, between 0 and 1.
        dose: fraction of the normal dose that the scan was taken with.
        electronic_variance: of the scan, photons squared.
        floor: least count before the logarithm.
        generator: source of the random numbers, on the tensor's device.

    Returns:
        Line integrals of both parts, shape and dtype of the input.

    Raises:
        ValueError: ``fraction`` not inside (0, 1), ``photons``, ``dose`` or ``floor`` not positive, a negative
            ``electronic_variance``, values not finite.

    Source: binomial splitting of a Poisson variable (Kingman, Poisson Processes, 1993, section 5.1); of a Gaussian one
    by Neufeld et al., Data thinning, JMLR 25, 2024.
    """
    incident = _incident(photons, dose)
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    _check_noise(electronic_variance, floor)
    if not torch.isfinite(line_integrals).all():
        raise ValueError("line_integrals has NaN or infinite values")
    counts = torch.round(incident * torch.exp(-line_integrals.double()))
    first = torch.binomial(counts, torch.full_like(counts, fraction), generator=generator)
    if electronic_variance > 0:
        noise = torch.randn(counts.shape, dtype=counts.dtype, device=counts.device, generator=generator)
        first = first + math.sqrt(fraction * (1 - fraction) * electronic_variance) * noise
    parts = (first, fraction), (counts - first, 1 - fraction)
    first, second = (-torch.log(part.clamp_min(floor) / (share * incident)) for part, share in parts)
    return first.to(line_integrals.dtype), second.to(line_integrals.dtype)


def check_fractions(fractions: Sequence[float]) -> tuple[float, float]:
    """Least and greatest share of the photons that one part may be given.

    Raises:
        ValueError: not two growing numbers between 0 and 1.
    """
    if len(fractions) != 2 or not 0 < fractions[0] <= fractions[1] < 1:
        raise ValueError(f"fractions must be two growing numbers between 0 and 1, got {fractions}")
    return float(fractions[0]), float(fractions[1])


def _check_noise(electronic_variance: float, floor: float) -> None:
    for name, value, least in (("electronic_variance", electronic_variance, 0.0), ("floor", floor, 1e-6)):
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"{name} must be {'positive' if least else 'zero or more'}, got {value}")


def _incident(photons: float | Tensor, dose: float | Tensor) -> float | Tensor:
    for name, value in (("photons", photons), ("dose", dose)):
        least, most = (value.min().item(), value.max().item()) if isinstance(value, Tensor) else (value, value)
        if not (least > 0 and math.isfinite(most)):
            raise ValueError(f"{name} must be a positive number, got {least}")
    return photons * dose
