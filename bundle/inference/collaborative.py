"""Patches that look alike, filtered together with the noise that their place and frequency has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bundle.physics import in_threads

from .collaborative_kernels import filter_groups
from .wiener import gauss_matrix

# Shapes in this file: B batch, H W image, R C patches down and across, S side of a patch.

#: Bands of rows that are filtered side by side; each has sums of its own, so it fixes the order of summing.
BANDS = 16

#: Kaiser window over a patch: its rim counts less.
TAPER = 2.0


def collaborative_wiener(
    image: Tensor,
    pilot: Tensor,
    noise: Tensor,
    strength: float = 1.0,
    size: int = 6,
    step: int = 3,
    radius: int = 14,
    count: int = 16,
    width: float = 4.0,
    around: Sequence[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """Wiener filter of groups of patches that look alike in the pilot::

        out = sum of the groups' patches  T^-1( P^2 / (P^2 + s V) T(image) ),    P = T(pilot)

    ``T`` is the cosine transform of every patch and the Walsh-Hadamard transform across the group; ``V`` is the
    variance of the noise of each frequency at that place. A detail that several patches share stands out of the noise
    although no single one of them shows it, and what only one of them has is kept, too, as far as the pilot shows it.
    The mean of a group passes as it is. Every pixel is the mean of all filtered patches over it, those with the least
    noise counting most. Deterministic, whatever the number of threads; computed on the CPU, wherever the tensors are.

    Args:
        image: what is filtered, ``(B, 1, H, W)``, HU.
        pilot: what is compared, and the estimate of its signal, ``(B, 1, H, W)``, HU.
        noise: realisation of its noise, ``(B, 1, H, W)``, HU.
        strength: ``s``, what the noise counts by.
        size: side of the patches, pixels.
        step: from one patch to the next, pixels, at most ``size``.
        radius: of the square that is searched for alike patches, pixels.
        count: patches of a group, a power of two; fewer where there are no more.
        width: standard deviation of the Gaussian over neighbouring patches that smooths ``V``, in patches.
        around: image and pilot of further slices that are searched at the same places, each ``(B, 1, H, W)``.

    Returns:
        the filtered image ``(B, 1, H, W)``.

    Raises:
        ValueError: shapes that differ or are not ``(B, 1, H, W)`` or smaller than a patch; a negative ``strength``; a
            ``step`` that is not in 1 to ``size``; a ``radius`` below 1; a ``count`` that is no power of two; a
            ``width`` that is not positive.

    Source: second step of BM3D (Dabov et al., IEEE Trans. Image Process. 16, 2007) with a pilot that comes from
    elsewhere and, in place of one variance, that of each coefficient as in Mäkinen et al., ibid. 29, 2020.
    """
    shape = tuple(image.shape)
    given = {"pilot": pilot, "noise": noise}
    given.update({f"around[{n}]": tensor for n, pair in enumerate(around) for tensor in pair})
    for name, tensor in given.items():
        if len(shape) != 4 or shape[1] != 1 or shape != tuple(tensor.shape):
            raise ValueError(f"image and {name} must both be (B, 1, H, W), got {shape} and {tuple(tensor.shape)}")
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength must be 0 or more, got {strength}")
    if size < 2 or min(shape[2:]) < size:
        raise ValueError(f"size must be 2 pixels or more and fit into the image, got {size} for {shape[2:]}")
    if not 1 <= step <= size:
        raise ValueError(f"step must be 1 to size, {size}, got {step}")
    if radius < 1:
        raise ValueError(f"radius must be 1 pixel or more, got {radius}")
    if count < 1 or count & (count - 1):
        raise ValueError(f"count must be a power of two, got {count}")
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"width must be positive, got {width}")
    rows, columns = (_corners(length, size, step) for length in shape[2:])
    cosines = _cosines(size)
    kaiser = torch.kaiser_window(size, periodic=False, beta=TAPER)
    taper = (kaiser[:, None] * kaiser).flatten().numpy()
    bands, height = _bands(rows, shape[2], size, radius)
    filtered = []
    for index in range(shape[0]):
        # The image itself again, as at an end of a stack, has no noise of its own to average.
        others = [pair for pair in around if not torch.equal(pair[0][index], image[index])]
        slices = [(image, pilot), *others]
        images, pilots = (
            np.stack([pair[k][index, 0].detach().cpu().float().numpy() for pair in slices]) for k in range(2)
        )
        variance = _variance(noise[index, 0].detach().cpu().float(), rows, columns, cosines, width)
        sums = np.zeros((len(bands), 2, height, shape[3]), np.float32)
        scan = (images, pilots, variance.numpy(), rows, columns, bands, cosines.numpy(), taper)
        settings = (radius, count, np.float32(strength), sums)
        in_threads(lambda low, high, given=(*scan, *settings): filter_groups(*given, low, high), len(bands), 1)
        total = np.zeros((2, shape[2], shape[3]), np.float32)
        for (_, _, above), part in zip(bands, sums):
            total[:, above : above + height] += part[:, : shape[2] - above]
        filtered.append(torch.from_numpy(total[0] / total[1]))
    return torch.stack(filtered)[:, None].to(image)


def _corners(length: int, size: int, step: int) -> np.ndarray:
    """First pixel of every patch, so that the last one ends where the image does."""
    corners = list(range(0, length - size + 1, step))
    return np.array(corners if corners[-1] == length - size else [*corners, length - size])


def _bands(rows: np.ndarray, length: int, size: int, radius: int) -> tuple[np.ndarray, int]:
    """Bands ``(bands, 3)`` as the kernel wants them, and how many rows of the image each may reach."""
    edges = np.linspace(0, len(rows), min(BANDS, len(rows)) + 1).astype(int)
    above = [max(rows[first] - radius, 0) for first in edges[:-1]]
    below = [min(rows[last - 1] + radius + size, length) for last in edges[1:]]
    height = max(end - start for start, end in zip(above, below))
    return np.stack([edges[:-1], edges[1:], above], axis=1), height


def _cosines(size: int) -> Tensor:
    """Orthonormal DCT-II, ``(S, S)``."""
    place = torch.arange(size)
    matrix = torch.cos(math.pi * (place + 0.5) * place[:, None] / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def _variance(noise: Tensor, rows: np.ndarray, columns: np.ndarray, cosines: Tensor, width: float) -> Tensor:
    """Mean square of every DCT coefficient of the noise around every patch, ``(R, C, S * S)``."""
    size = len(cosines)
    patches = noise.unfold(0, size, 1).unfold(1, size, 1)[torch.from_numpy(rows)][:, torch.from_numpy(columns)]
    power = (cosines @ patches @ cosines.T).square().flatten(2)
    down, across = (gauss_matrix(length, width) for length in power.shape[:2])
    power = (down @ power.flatten(1)).view_as(power)
    return torch.matmul(across, power).contiguous()
