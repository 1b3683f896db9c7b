"""How sharp a detail of a stated contrast is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.signal.windows import tukey
from torch import Tensor

from .result import Result

# Shapes in this file: N images, H W pixels, K frequencies.

#: Samples of the edge profile a pixel.
SAMPLES_PER_PIXEL = 10

#: Frequencies between 0 and the Nyquist frequency of the pixels.
NUM_FREQUENCIES = 101


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskTransfer(Result):
    """Task transfer function of a disc's edge; ``n`` counts the images averaged.

    Args:
        pixel_size: mm.
        contrast: mean inside less mean outside, HU; a filter that is not linear has another function at another one.
        frequency: ``(K,)``, 1/mm.
        transfer: ``(K,)``, 1 at frequency 0.
        ttf50: frequency where it first falls below one half, 1/mm; None where it never does.
        ttf10: likewise for one tenth.
    """

    pixel_size: float
    contrast: float
    frequency: Tensor
    transfer: Tensor
    ttf50: float | None
    ttf10: float | None


def task_transfer(
    image: Tensor, pixel_size: float, center: tuple[float, float], radius: float, reach: float | None = None
) -> TaskTransfer:
    """Task transfer function on a disc insert.

    Pixels around the disc's edge, sorted by their distance to its centre, sample the edge more finely than the pixel
    grid does; the derivative of that profile is the line spread, its Fourier transform the function. Noise lifts it at
    high frequencies, so average many realisations.

    Args:
        image: ``(H, W)``, or realisations ``(N, H, W)`` that are averaged; HU.
        pixel_size: mm.
        center: of the disc: row and column, pixels, whole numbers at pixel centres.
        radius: of the disc, mm.
        reach: how far the profile goes to either side of the edge, mm; three quarters of the radius by default. The
            surroundings must be plain that far.

    Raises:
        ValueError: an image of another rank or not finite, sizes that can't be, a ring that leaves the image, an edge
            without contrast.

    Source: Richard et al., Med. Phys. 39(7), 2012; AAPM TG-233, 2019.
    """
    if image.ndim not in (2, 3) or not torch.isfinite(image).all():
        raise ValueError(f"image must be (H, W) or (N, H, W) of finite numbers, got shape {tuple(image.shape)}")
    reach = 0.75 * radius if reach is None else reach
    if not (pixel_size > 0 and 0 < reach <= radius):
        raise ValueError(
            f"expected pixel_size > 0 and 0 < reach <= radius (mm), got {pixel_size}, reach {reach}, radius {radius}"
        )
    if reach < 3 * pixel_size:
        raise ValueError(f"reach must be three pixels or more, got {reach} mm for pixels of {pixel_size} mm")
    images = image.detach().double().cpu().reshape(-1, *image.shape[-2:])
    edge, step = _edge_profile(images.mean(0), pixel_size, center, radius, reach)
    plateau = max(1, len(edge) // 6)
    contrast = float(edge[:plateau].mean() - edge[-plateau:].mean())
    if abs(contrast) < 1e-9:
        raise ValueError(f"the disc at {center} has no contrast to its surroundings")
    spread = edge[:-1] - edge[1:]
    # Flat over the middle half: what the window takes away is far from the edge.
    spread = spread * torch.from_numpy(tukey(len(spread), 0.5))
    frequency = torch.linspace(0, 0.5 / pixel_size, NUM_FREQUENCIES, dtype=torch.float64)
    position = (torch.arange(len(spread)) - (len(spread) - 1) / 2) * step
    wave = torch.exp(-2j * math.pi * frequency[:, None] * position)
    # Samples are means over a step, and differences of neighbours: both blur by a step.
    transfer = (wave @ spread.to(wave.dtype)).abs() / torch.sinc(frequency * step) ** 2
    transfer = transfer / transfer[0]
    return TaskTransfer(
        mask=f"ring from {radius - reach:g} to {radius + reach:g} mm around row {center[0]:g}, column {center[1]:g}",
        n=len(images),
        pixel_size=float(pixel_size),
        contrast=contrast,
        frequency=frequency,
        transfer=transfer,
        ttf50=_falls_below(0.5, frequency, transfer),
        ttf10=_falls_below(0.1, frequency, transfer),
    )


def _edge_profile(
    image: Tensor, pixel_size: float, center: tuple[float, float], radius: float, reach: float
) -> tuple[Tensor, float]:
    """Mean over each step of the distance to the centre, from inside to outside, and the step in mm."""
    row, column = center
    margin = (radius + reach) / pixel_size
    rows, columns = image.shape
    if min(row, column, rows - 1 - row, columns - 1 - column) < margin:
        raise ValueError(
            f"the ring of {radius + reach:g} mm around row {row:g}, column {column:g} leaves the image of "
            f"{rows} x {columns} pixels"
        )
    y, x = (torch.arange(n, dtype=torch.float64) - c for n, c in ((rows, row), (columns, column)))
    distance = torch.hypot(y[:, None], x) * pixel_size
    step = pixel_size / SAMPLES_PER_PIXEL
    count = int(2 * reach / step)
    index = ((distance - (radius - reach)) / step).floor().long()
    inside = (index >= 0) & (index < count)
    pixels = torch.bincount(index[inside], minlength=count).double()
    sums = torch.bincount(index[inside], image[inside], minlength=count)
    filled = pixels > 0
    known = torch.arange(count, dtype=torch.float64)[filled]
    return _interpolate(torch.arange(count, dtype=torch.float64), known, sums[filled] / pixels[filled]), step


def _interpolate(at: Tensor, known: Tensor, values: Tensor) -> Tensor:
    right = torch.searchsorted(known, at).clamp(1, len(known) - 1)
    left = right - 1
    weight = ((at - known[left]) / (known[right] - known[left])).clamp(0, 1)
    return values[left] * (1 - weight) + values[right] * weight


def _falls_below(level: float, frequency: Tensor, transfer: Tensor) -> float | None:
    below = (transfer < level).nonzero()
    if not len(below):
        return None
    k = int(below[0])
    weight = (transfer[k - 1] - level) / (transfer[k - 1] - transfer[k])
    return float(frequency[k - 1] + weight * (frequency[k] - frequency[k - 1]))
