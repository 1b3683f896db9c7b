"""Noise removed window by window, frequency by frequency, with the noise that this place and direction has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

# Shapes in this file: B batch, H W image, Y X windows down and across, S side of a window.

#: Added to the pilot's power, HU^2: where there is neither signal nor noise, nothing is divided by nothing.
LEAST_POWER = 1e-3


def local_wiener(
    image: Tensor,
    pilot: Tensor,
    noise: Tensor,
    strengths: Sequence[float],
    size: int = 32,
    step: int = 8,
    width: float = 3.0,
) -> list[Tensor]:
    """Wiener filter in overlapping windows, for several strengths at once::

        out_s = sum over windows of  IFFT( P / (P + s N) FFT(image) ),    P = |FFT(pilot)|^2, N = |FFT(noise)|^2

    Noise of a CT image is louder along some directions than others, and differently so from place to place (long paths
    through the patient are noisy ones). The spectrum of each window knows that; what the pilot shows there, a smooth
    image of the same patient, passes as it is in ``image``. Linear in ``image``; deterministic.

    Windows are of the Hann form, before and after the filter, and their sum is divided by that of the windows alone;
    the image goes on beyond its rim as its last pixels do.

    Args:
        image: what is filtered, ``(B, 1, H, W)``, HU.
        pilot: estimate of its signal, ``(B, 1, H, W)``, HU.
        noise: realisation of its noise, ``(B, 1, H, W)``, HU, such as what a denoiser took away.
        strengths: every ``s``: what the noise counts by; 0 gives the image itself.
        size: side of the windows, pixels.
        step: from one window to the next, pixels; ``size`` is a multiple of twice the step.
        width: standard deviation of the Gaussian over neighbouring windows that smooths ``N``, in windows.

    Returns:
        one ``(B, 1, H, W)`` for each strength.

    Raises:
        ValueError: shapes that differ or are not ``(B, 1, H, W)``, a negative strength, a ``size`` that is no multiple
            of twice a positive ``step``, a ``width`` that is not positive.

    Source: empirical Wiener filter of Ghael, Sayeed and Baraniuk, Proc. SPIE 3169, 1997, in overlapping windows of the
    Fourier transform as in Knaus and Zwicker, Dual-domain image denoising, ICIP 2013.
    """
    shape = tuple(image.shape)
    if len(shape) != 4 or shape[1] != 1 or not shape == tuple(pilot.shape) == tuple(noise.shape):
        raise ValueError(
            "image, pilot and noise must all be (B, 1, H, W), "
            f"got {shape}, {tuple(pilot.shape)} and {tuple(noise.shape)}"
        )
    if not all(math.isfinite(strength) and strength >= 0 for strength in strengths):
        raise ValueError(f"strengths must be 0 or more, got {tuple(strengths)}")
    if step < 1 or size < 1 or size % (2 * step):
        raise ValueError(f"size must be a multiple of twice step, both positive, got size {size} and step {step}")
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"width must be positive, got {width}")
    window = _window(size).to(image)
    window = window[:, None] * window
    signal = _power(_spectra(pilot, window, step)) + LEAST_POWER
    power = _smooth(_power(_spectra(noise, window, step)), width)
    spectra = _spectra(image, window, step)
    total = _overlap(window.square().expand(1, *spectra.shape[1:3], size, size), step, shape[2:])
    filtered = []
    for strength in strengths:
        kept = spectra * (signal / (signal + strength * power))
        windows = torch.fft.irfft2(kept, s=(size, size)) * window
        filtered.append(_overlap(windows, step, shape[2:]) / total)
    return filtered


def _window(size: int) -> Tensor:
    """Hann window without its zeros, ``(S,)``."""
    return torch.hann_window(size + 2, periodic=False)[1:-1]


def _spectra(image: Tensor, window: Tensor, step: int) -> Tensor:
    """Half spectra of all windows, ``(B, Y, X, S, S / 2 + 1)``; every pixel lies in as many windows."""
    size = len(window)
    rim = size - step
    down, across = (-length % step for length in image.shape[2:])
    padded = functional.pad(image, (rim, rim + across, rim, rim + down), mode="replicate")
    return torch.fft.rfft2(padded[:, 0].unfold(1, size, step).unfold(2, size, step) * window)


def _power(spectra: Tensor) -> Tensor:
    return spectra.real.square() + spectra.imag.square()


def _smooth(power: Tensor, width: float) -> Tensor:
    """Mean of each frequency over neighbouring windows, weighed by a Gaussian of their distance."""
    down, across = (gauss_matrix(length, width).to(power) for length in power.shape[1:3])
    rows = torch.matmul(down, power.flatten(2)).view_as(power)
    return torch.matmul(across, rows.flatten(3)).view_as(power)


def gauss_matrix(length: int, width: float) -> Tensor:
    """Weights ``(length, length)`` of a mean over neighbours, a Gaussian of their distance; rows sum to 1."""
    place = torch.arange(length) / width
    weight = torch.exp(-0.5 * (place[:, None] - place) ** 2)
    return weight / weight.sum(1, keepdim=True)


def _overlap(windows: Tensor, step: int, shape: Sequence[int]) -> Tensor:
    """Windows ``(B, Y, X, S, S)`` added where they lie, ``(B, 1, H, W)``."""
    batch, down, across, size, _ = windows.shape
    columns = windows.reshape(batch, down * across, size * size).transpose(1, 2)
    padded = ((down - 1) * step + size, (across - 1) * step + size)
    rim = size - step
    return functional.fold(columns, padded, size, stride=step)[..., rim : rim + shape[0], rim : rim + shape[1]]
