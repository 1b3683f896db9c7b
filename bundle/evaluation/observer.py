"""How well a detail can be told from noise: the channelized Hotelling observer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from scipy.special import ncfdtr
from scipy.stats import norm
from torch import Tensor

from .result import Result

# Shapes in this file: N regions with the detail, M without, h w pixels of one, K channels.

#: Dense difference-of-Gaussians channels of Abbey and Barrett (2001): number, first width in cycles a pixel, growth,
#: and ratio of the two Gaussians.
DENSE_DOG = (10, 0.005, 1.4, 1.67)


@dataclass(frozen=True, kw_only=True, eq=False)
class Detectability(Result):
    """How often the observer ranks a region with the detail above one without; ``n`` counts regions with it.

    Args:
        n_background: regions without the detail.
        channels: which, in words, with their number.
        auc: area under the ROC curve, from all regions, by the law that Gaussian channel outputs follow: the value that
            the data is as likely to lie above as below of.
        low: lower end of its exact confidence interval.
        high: upper end.
        confidence: of the interval, and of that of ``holdout_auc``.
        snr: detectability index d', ``auc = Phi(d' / sqrt 2)``.
        holdout_auc: area counted on regions that the template was not made from (two halves, each judged by the
            template of the other): no law is assumed, and it lies lower for few regions.
        holdout_low: lower end of its confidence interval (DeLong), for given templates.
        holdout_high: upper end.
        placements: ``(N,)`` and ``(M,)``: each region's share of regions of the other kind, held out likewise, that it
            is ranked rightly against; what :func:`auc_difference` compares by.
    """

    n_background: int
    channels: str
    auc: float
    low: float
    high: float
    confidence: float
    snr: float
    holdout_auc: float
    holdout_low: float
    holdout_high: float
    placements: tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class AucDifference(Result):
    """Held-out area of one method less that of another on the same noise; ``n`` counts regions with the detail.

    Args:
        n_background: regions without the detail.
        difference: first less second.
        low: lower end of the confidence interval (DeLong, paired, for given templates).
        high: upper end.
        confidence: of the interval.
    """

    n_background: int
    difference: float
    low: float
    high: float
    confidence: float


def hotelling_auc(
    signal: Tensor,
    background: Tensor,
    channels: Tensor | None = None,
    confidence: float = 0.95,
    channel_name: str | None = None,
) -> Detectability:
    """Area under the ROC curve of a channelized Hotelling observer that knows the detail, its place and the noise.

    ``auc`` uses every region both to train and to test, and its interval is exact for that: with Gaussian channel
    outputs of one covariance, ``F = (N+M-K-1)/(K (N+M-2)) NM/(N+M) d'^2`` (d' as estimated) follows a noncentral F law
    of K and N+M-K-1 degrees of freedom and noncentrality ``NM/(N+M) d'^2`` (d' as it is).

    Args:
        signal: regions with the detail in their middle, ``(N, h, w)``, HU; each of its own noise.
        background: regions without, ``(M, h, w)``.
        channels: ``(K, h, w)``, see :func:`dense_dog_channels` and :func:`laguerre_gauss_channels`; by default the
            former.
        confidence: of the intervals.
        channel_name: what the channels are called in the result; needed where ``channels`` is given.

    Raises:
        ValueError: regions of another rank, that differ in size or are too few for the channels (each half must hold
            more than the channels), not finite; channels that do not fit or have no name; a confidence outside (0, 1).

    Source: Gallas and Barrett, J. Opt. Soc. Am. A 20(9), 2003; intervals: Wunderlich, Noo, Gallas and Heilbrun, IEEE
    Trans. Med. Imaging 34(2), 2015; DeLong, DeLong and Clarke-Pearson, Biometrics 44(3), 1988.
    """
    if signal.ndim != 3 or background.ndim != 3 or signal.shape[1:] != background.shape[1:]:
        raise ValueError(
            "signal and background must be regions (N, h, w) of one size, got "
            f"{tuple(signal.shape)} and {tuple(background.shape)}"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    rows, columns = signal.shape[1:]
    if channels is None:
        channels = dense_dog_channels(rows, columns)
        channel_name = channel_name or "dense difference of Gaussians"
    if channels.ndim != 3 or channels.shape[1:] != signal.shape[1:]:
        raise ValueError(f"channels must be (K, {rows}, {columns}), got {tuple(channels.shape)}")
    if not channel_name:
        raise ValueError("channel_name must say which channels were given")
    outputs = [_outputs(regions, channels) for regions in (signal, background)]
    count, others, num_channels = len(signal), len(background), len(channels)
    if min(count, others) // 2 * 2 <= num_channels + 1:
        raise ValueError(
            f"{count} and {others} regions are too few for {num_channels} channels: each half must hold more than those"
        )
    pairs = count * others / (count + others)
    free = count + others - num_channels - 1
    squared = float(_template(*outputs) @ (outputs[0].mean(0) - outputs[1].mean(0)))
    statistic = free / (num_channels * (count + others - 2)) * pairs * squared
    tail = (1 - confidence) / 2
    # The detail can only help: a noncentrality below 0 does not exist, and its place is taken by 0.
    snr_low, snr, snr_high = (
        math.sqrt(_noncentrality(num_channels, free, share, statistic) / pairs) for share in (1 - tail, 0.5, tail)
    )
    placements = _placements(*outputs)
    holdout, half_width = _delong(*placements, confidence)
    return Detectability(
        mask=f"regions of {rows} x {columns} pixels, the detail in their middle",
        n=count,
        n_background=others,
        channels=f"{num_channels} of {channel_name}",
        auc=_area(snr),
        low=_area(snr_low),
        high=_area(snr_high),
        confidence=confidence,
        snr=snr,
        holdout_auc=holdout,
        holdout_low=max(0.0, holdout - half_width),
        holdout_high=min(1.0, holdout + half_width),
        placements=placements,
    )


def auc_difference(first: Detectability, second: Detectability) -> AucDifference:
    """Difference of two methods' held-out areas, where both saw the same regions in the same order.

    Raises:
        ValueError: other numbers of regions, or another confidence.
    """
    if (first.n, first.n_background, first.confidence) != (second.n, second.n_background, second.confidence):
        raise ValueError(
            f"both must have the same regions and confidence, got {first.n} and {second.n} with the detail, "
            f"{first.n_background} and {second.n_background} without, {first.confidence} and {second.confidence}"
        )
    differences = [one - other for one, other in zip(first.placements, second.placements)]
    difference, half_width = _delong(*differences, first.confidence)
    return AucDifference(
        mask=first.mask,
        n=first.n,
        n_background=first.n_background,
        difference=difference,
        low=difference - half_width,
        high=difference + half_width,
        confidence=first.confidence,
    )


def dense_dog_channels(rows: int, columns: int) -> Tensor:
    """Dense difference-of-Gaussians channels ``(10, h, w)`` around the region's middle, float64, each of norm 1.

    In frequency (cycles a pixel) ``C_j = exp(-(f / (Q s_j))^2 / 2) - exp(-(f / s_j)^2 / 2)``, ``s_j = s_0 a^j``, with
    ``s_0 = .005``, ``a = 1.4``, ``Q = 1.67``; here as the pixels see them.

    Source: Abbey and Barrett, J. Opt. Soc. Am. A 18(3), 2001.
    """
    number, first, growth, ratio = DENSE_DOG
    squared = _squared_radius(rows, columns)
    width = first * growth ** torch.arange(number, dtype=torch.float64)[:, None, None]

    def gauss(s: Tensor) -> Tensor:
        # The Fourier transform of exp(-(f / s)^2 / 2) in the plane, but for a constant.
        return s**2 * torch.exp(-2 * (math.pi * s) ** 2 * squared)

    return _normalised(gauss(ratio * width) - gauss(width))


def laguerre_gauss_channels(rows: int, columns: int, width: float, number: int = 6) -> Tensor:
    """Laguerre-Gauss channels ``(K, h, w)`` around the region's middle, float64, each of norm 1.

    ``u_j = sqrt(2)/a exp(-pi r^2 / a^2) L_j(2 pi r^2 / a^2)``: the first is a Gaussian of standard deviation
    ``a / sqrt(2 pi)``.

    Args:
        rows: of a region.
        columns: likewise.
        width: a, pixels; a disc of radius R is met best by about ``sqrt(2 pi) R / 1.5``.
        number: of channels.

    Raises:
        ValueError: a width or a number that is not positive.

    Source: Gallas and Barrett, J. Opt. Soc. Am. A 20(9), 2003.
    """
    if not width > 0 or number < 1:
        raise ValueError(f"width and number must be positive, got {width} and {number}")
    argument = 2 * math.pi * _squared_radius(rows, columns) / width**2
    polynomials = [torch.ones_like(argument), 1 - argument]
    for j in range(1, number - 1):
        polynomials.append(((2 * j + 1 - argument) * polynomials[j] - j * polynomials[j - 1]) / (j + 1))
    return _normalised(torch.stack(polynomials[:number]) * torch.exp(-argument / 2))


def _squared_radius(rows: int, columns: int) -> Tensor:
    y, x = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (rows, columns))
    return y[:, None] ** 2 + x**2


def _normalised(channels: Tensor) -> Tensor:
    return channels / channels.square().sum((-1, -2), keepdim=True).sqrt()


def _outputs(regions: Tensor, channels: Tensor) -> Tensor:
    regions = regions.detach().double().cpu()
    if not torch.isfinite(regions).all():
        raise ValueError("regions have NaN or infinite values")
    return regions.flatten(1) @ channels.double().flatten(1).T


def _template(signal: Tensor, background: Tensor) -> Tensor:
    """Hotelling's template ``(K,)``: inverse of the pooled covariance, times the difference of the means."""
    scatter = sum((len(v) - 1) * torch.cov(v.T).reshape(v.shape[1], -1) for v in (signal, background))
    covariance = scatter / (len(signal) + len(background) - 2)
    # Channels differ by orders of magnitude in their noise; scaled, they are solved for safely.
    scale = covariance.diagonal().clamp_min(1e-300).rsqrt()
    correlation = covariance * scale[:, None] * scale
    return scale * (torch.linalg.pinv(correlation, hermitian=True, rtol=1e-10) @ (scale * _shift(signal, background)))


def _shift(signal: Tensor, background: Tensor) -> Tensor:
    return signal.mean(0) - background.mean(0)


def _placements(signal: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    shares = torch.empty(len(signal)), torch.empty(len(background))
    for half in (0, 1):
        template = _template(signal[1 - half :: 2], background[1 - half :: 2])
        with_detail, without = signal[half::2] @ template, background[half::2] @ template
        right = torch.sign(with_detail[:, None] - without) / 2 + 0.5
        shares[0][half::2], shares[1][half::2] = right.mean(1).float(), right.mean(0).float()
    return shares[0].double(), shares[1].double()


def _delong(signal: Tensor, background: Tensor, confidence: float) -> tuple[float, float]:
    """Mean of placements, and half the width of its confidence interval."""
    variance = signal.var() / len(signal) + background.var() / len(background)
    mean = (signal.mean() + background.mean()) / 2
    return float(mean), float(norm.ppf((1 + confidence) / 2) * variance.sqrt())


def _noncentrality(numerator: int, denominator: int, share: float, statistic: float) -> float:
    """The noncentrality under which the statistic lies at the quantile `share` of its law; 0 where there is none."""

    def excess(value: float) -> float:
        return float(ncfdtr(numerator, denominator, value, statistic)) - share

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-9, rtol=1e-9))


def _area(snr: float) -> float:
    return float(norm.cdf(snr / math.sqrt(2)))
