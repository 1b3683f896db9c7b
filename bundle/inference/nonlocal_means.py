"""Averages over pixels whose surroundings look alike, wherever nearby they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Shapes in this file: B batch, H W image.


def guided_nonlocal_means(
    image: Tensor,
    guide: Tensor,
    strengths: Sequence[float],
    patch_size: int = 5,
    radius: int = 7,
    around: Sequence[tuple[Tensor, Tensor]] = (),
) -> list[Tensor]:
    """Non-local means of one image with the weights of another, for several strengths at once::

        out_h(x) = sum_z w_h(x, z) image(z) / sum_z w_h(x, z),    |z - x|_inf <= radius, z in any of the slices
        w_h(x, z) = exp(-d(x, z) / h^2),    d = mean over the patch of (guide(x + p) - guide(z + p))^2

    The guide may be a smooth image, even a wrong one: it only says which pixels are averaged, so the result keeps
    what the averaged pixels have in common although the guide shows none of it. Patches that leave the image are cut,
    pixels outside are not there. Linear in ``image``; deterministic.

    Args:
        image: what is averaged, ``(B, 1, H, W)``.
        guide: what is compared, ``(B, 1, H, W)``, in the unit of ``strengths``.
        strengths: every ``h``: differences of the guide below it count as none.
        patch_size: side of the patch in pixels, odd.
        radius: of the square that is searched, pixels.
        around: image and guide of further slices that are searched at the same places, each ``(B, 1, H, W)``.

    Returns:
        one ``(B, 1, H, W)`` for each strength.

    Raises:
        ValueError: shapes that differ or are not ``(B, 1, H, W)``, a strength that is not positive, an even or
            negative ``patch_size``, a ``radius`` below 1.

    Source: Buades, Coll and Morel, CVPR 2005; the guide as in the joint filters of Petschnigg et al., SIGGRAPH 2004.
    """
    for name, first, second in (("", image, guide), *((" of around", *pair) for pair in around)):
        if first.ndim != 4 or first.shape[1] != 1 or not image.shape == first.shape == second.shape:
            raise ValueError(
                f"image and guide{name} must both be (B, 1, H, W), got {tuple(first.shape)} and {tuple(second.shape)}"
            )
    if not all(math.isfinite(strength) and strength > 0 for strength in strengths):
        raise ValueError(f"strengths must be positive, got {tuple(strengths)}")
    if patch_size < 1 or patch_size % 2 == 0:
        raise ValueError(f"patch_size must be odd and positive, got {patch_size}")
    height, width = image.shape[2:]
    if radius < 1:
        raise ValueError(f"radius must be 1 pixel or more, got {radius}")
    vertical, horizontal = min(radius, height - 1), min(radius, width - 1)
    sums = [image.clone() for _ in strengths]
    totals = [torch.ones_like(image) for _ in strengths]
    for down in range(vertical + 1):
        for right in range(-horizontal if down else 1, horizontal + 1):
            # Both pixels of a pair at once: the distance is the same from either.
            one, other = _pair(down, right, height, width)
            distance = _box((guide[one] - guide[other]).square_(), patch_size)
            for strength, sum_, total in zip(strengths, sums, totals):
                weight = torch.exp(distance * (-1 / strength**2))
                sum_[one].addcmul_(weight, image[other])
                sum_[other].addcmul_(weight, image[one])
                total[one] += weight
                total[other] += weight
    for image_there, guide_there in around:
        for down in range(-vertical, vertical + 1):
            for right in range(-horizontal, horizontal + 1):
                here, there = _pair(down, right, height, width)
                distance = _box((guide[here] - guide_there[there]).square_(), patch_size)
                for strength, sum_, total in zip(strengths, sums, totals):
                    weight = torch.exp(distance * (-1 / strength**2))
                    sum_[here].addcmul_(weight, image_there[there])
                    total[here] += weight
    return [sum_.div_(total) for sum_, total in zip(sums, totals)]


def _pair(down: int, right: int, height: int, width: int) -> tuple[tuple, tuple]:
    """Index of all pixels that have a partner so far away, and that of their partners."""

    def spans(shift: int, length: int) -> tuple[slice, slice]:
        return slice(max(0, -shift), length - max(0, shift)), slice(max(0, shift), length - max(0, -shift))

    rows, columns = spans(down, height), spans(right, width)
    return (..., rows[0], columns[0]), (..., rows[1], columns[1])


def _box(image: Tensor, size: int) -> Tensor:
    """Mean over a square of ``size`` pixels, of what is there."""
    # Shifted sums: several times faster than pooling on a CPU.
    for axis in (2, 3):
        image = _run(image, size // 2, axis) / _run(image.new_ones(image.shape[axis]), size // 2, 0).view(
            [-1 if axis == other else 1 for other in range(4)]
        )
    return image


def _run(values: Tensor, half: int, axis: int) -> Tensor:
    """Sum along an axis over ``2 half + 1`` entries, of those that are there."""
    sums, length = values.clone(), values.shape[axis]
    for step in range(1, min(half, length - 1) + 1):
        sums.narrow(axis, step, length - step).add_(values.narrow(axis, 0, length - step))
        sums.narrow(axis, 0, length - step).add_(values.narrow(axis, step, length - step))
    return sums
