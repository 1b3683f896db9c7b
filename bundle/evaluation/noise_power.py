"""How much noise there is at which spatial frequency."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .result import Result

# Shapes in this file: N regions, h w pixels of one, K radial frequencies.

#: What is taken off the regions to leave noise alone.
SUBTRACT = ("mean", "pairs", "nothing")


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisePower(Result):
    """Noise power spectrum; ``n`` counts the noise fields it is the mean of.

    Args:
        pixel_size: mm.
        subtracted: see :data:`SUBTRACT`.
        power: ``(h, w)``, HU^2 mm^2, zero frequency first, as :func:`torch.fft.fftfreq` orders it.
        frequency: ``(K,)``, 1/mm: mean of a ring, up to the Nyquist frequency of the pixels.
        radial: ``(K,)``, mean power of a ring.
        variance: HU^2; the integral of ``power`` over all frequencies.
        peak: frequency of the largest radial power, 1/mm.
        mean_frequency: of the radial power, 1/mm.
    """

    pixel_size: float
    subtracted: str
    power: Tensor
    frequency: Tensor
    radial: Tensor
    variance: float
    peak: float
    mean_frequency: float


def noise_power_spectrum(images: Tensor, pixel_size: float, subtract: str = "mean") -> NoisePower:
    """Noise power spectrum of regions that show the same thing under different noise: ``NPS = dx^2/(h w) <|DFT|^2>``.

    Its integral is the noise variance. Frequencies below one over the region's side aren't told apart.

    Args:
        images: regions ``(N, h, w)``, HU.
        pixel_size: mm.
        subtract: ``mean``: the mean of all N (2 at least; the lost degree of freedom is put right); ``pairs``: each
            second one from the one before, by sqrt 2; ``nothing``: the regions are noise already, such as
            image - reference.

    Raises:
        ValueError: regions of another rank, too few or not finite, a pixel size that is none, an unknown ``subtract``.

    Source: ICRU Report 87, 2012; mean frequency of the radial spectrum as in AAPM TG-233, 2019.
    """
    if images.ndim != 3 or min(images.shape[-2:]) < 4:
        raise ValueError(f"images must be regions (N, h, w) of 4 x 4 pixels or more, got {tuple(images.shape)}")
    if not pixel_size > 0:
        raise ValueError(f"pixel_size must be positive (mm), got {pixel_size}")
    if subtract not in SUBTRACT:
        raise ValueError(f"subtract must be one of {SUBTRACT}, got {subtract!r}")
    images = images.detach().double().cpu()
    if not torch.isfinite(images).all():
        raise ValueError("images has NaN or infinite values")
    count, rows, columns = images.shape
    if count < (1 if subtract == "nothing" else 2) or (subtract == "pairs" and count % 2):
        raise ValueError(f"{count} images are not enough, or not in pairs, to subtract {subtract!r}")
    if subtract == "mean":
        noise = (images - images.mean(0)) * (count / (count - 1)) ** 0.5
    elif subtract == "pairs":
        noise = (images[::2] - images[1::2]) / 2**0.5
    else:
        noise = images
    power = torch.fft.fft2(noise).abs().square().mean(0) * pixel_size**2 / (rows * columns)
    frequency, radial = _rings(power, pixel_size)
    return NoisePower(
        mask=f"regions of {rows} x {columns} pixels, all of each",
        n=len(noise),
        pixel_size=float(pixel_size),
        subtracted=subtract,
        power=power,
        frequency=frequency,
        radial=radial,
        variance=float(noise.square().mean()),
        peak=float(frequency[radial.argmax()]),
        mean_frequency=float((frequency * radial).sum() / radial.sum().clamp_min(torch.finfo(torch.float64).tiny)),
    )


def square_regions(image: Tensor, size: int, mask: Tensor | None = None) -> Tensor:
    """Squares side by side, ``(N, size, size)``, of a stack ``(S, H, W)``: those that lie wholly in ``mask``.

    Args:
        image: for instance noisy - reference, whose noise power is wanted.
        size: side of a square, pixels.
        mask: boolean, the image's shape; None takes all.

    Raises:
        ValueError: shapes that don't fit.
    """
    if image.ndim != 3 or not 1 <= size <= min(image.shape[-2:]):
        raise ValueError(f"image must be (S, H, W) of {size} x {size} pixels or more, got {tuple(image.shape)}")
    if mask is not None and mask.shape != image.shape:
        raise ValueError(f"mask must be of shape {tuple(image.shape)}, got {tuple(mask.shape)}")
    squares = image.unfold(1, size, size).unfold(2, size, size).reshape(-1, size, size)
    if mask is None:
        return squares
    return squares[mask.unfold(1, size, size).unfold(2, size, size).reshape(-1, size, size).all(-1).all(-1)]


def _rings(power: Tensor, pixel_size: float) -> tuple[Tensor, Tensor]:
    rows, columns = (torch.fft.fftfreq(n, pixel_size, dtype=torch.float64) for n in power.shape)
    distance = torch.hypot(rows[:, None], columns[None])
    step = 1 / (min(power.shape) * pixel_size)
    ring = (distance / step).round().long()
    # The corners beyond the pixels' Nyquist frequency are seen along the diagonals alone.
    inside = distance <= (0.5 + 1e-9) / pixel_size
    ring, count = ring[inside], int(ring[inside].max()) + 1
    pixels = torch.bincount(ring, minlength=count).double()
    mean = [torch.bincount(ring, value[inside], minlength=count) / pixels for value in (distance, power)]
    return mean[0], mean[1]
