"""Bone as the raw data have it: sharp along its contours, and at its level inside."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .smoothing import gauss, slope

# Shapes in this file: B batch, H W image, P pixels at bone. All images are in HU.

#: What the smoothed refined image shows above this is bone, HU; width of that smoothing, and how far from its rim it is
#: bone's inside, pixels; width of the Gaussian mean within it that is the raw data's, pixels.
BONE_HU = 250.0
BONE_SMOOTHING = 2.0
BONE_RIM = 2
BONE_LEVEL_WIDTH = 16.0

#: Least share of bone's inside in that mean: a few pixels alone have no level.
LEAST_SHARE = 0.01

#: At bone is what has this much in the refined image within so many pixels, HU; how gradually.
NEAR_BONE_HU = 200.0
NEAR_BONE_SOFTNESS = 20.0
NEAR_BONE_REACH = 3

#: Width of the mean along a contour, and how far it is taken, pixels.
CONTOUR_WIDTH = 8.0
CONTOUR_REACH = 16

#: What counts as the same contour: HU apart, in pixels of its slope, but no less than so many HU.
CONTOUR_SLOPE = 0.35
CONTOUR_HU = 20.0

#: What may be missing at a contour: in pixels of its slope, and HU where there is none.
MISSING_SLOPE = 0.4
MISSING_HU = 20.0

#: Width of the Gaussian over which the noise of the means along contours is measured, pixels.
CONTOUR_NOISE_WIDTH = 4.0

#: Below this a pixel is not at bone.
LEAST_NEAR = 0.01


def bone_contours(missing: Tensor, refined: Tensor, noise: Tensor) -> Tensor:
    """Mean of ``missing`` along the contours of bone, as far as it stands out of its noise; zero away from bone.

    What a blurred edge lacks is the same all along it, and noise is not. So the mean goes over what is near and of the
    same height in the smoothed refined image, ``g``, whose slope is ``s``::

        m(p) = sum_q k(p, q) missing(q) / sum_q k(p, q),    k = exp(-(g(q) - g(p))^2 / (2 h^2) - |q - p|^2 / (2 * 8^2))
        h = max(20, .35 s(p)),    result = near m a^2 / (a^2 + v),    a^2 = (.4 s)^2 + 20^2

    ``v`` is the local power of the same mean of the noise, ``near`` how near to bone.

    Args:
        missing: raw data less the image that lacks something, ``(B, 1, H, W)``, HU.
        refined: guide, likewise.
        noise: a realisation of the raw data's noise, independent of it, likewise.

    Source: this project's. The mean is a cross bilateral filter (Petschnigg et al., ACM Trans. Graph. 23(3), 2004), its
    share that of a Wiener filter.
    """
    guide, slopes = gauss(refined, 1.0), slope(refined)
    reach = 2 * NEAR_BONE_REACH + 1
    highest = functional.max_pool2d(guide, reach, 1, NEAR_BONE_REACH)
    near = torch.sigmoid((highest - NEAR_BONE_HU) / NEAR_BONE_SOFTNESS)
    height = (CONTOUR_SLOPE * slopes).clamp_min(CONTOUR_HU)
    means = torch.zeros_like(missing).repeat(1, 2, 1, 1)
    for index in range(len(missing)):
        pixels = (near[index, 0] > LEAST_NEAR).nonzero()
        images = torch.cat([missing[index], noise[index]])
        means[index][:, pixels[:, 0], pixels[:, 1]] = _along(images, guide[index, 0], height[index, 0], pixels)
    mean, noise_mean = means.split(1, 1)
    power = gauss(near * noise_mean**2, CONTOUR_NOISE_WIDTH) / gauss(near, CONTOUR_NOISE_WIDTH).clamp_min(1e-4)
    expected = (MISSING_SLOPE * slopes) ** 2 + MISSING_HU**2
    return near * mean * expected / (expected + power)


def _along(images: Tensor, guide: Tensor, height: Tensor, pixels: Tensor) -> Tensor:
    """Means ``(C, P)`` of ``images`` ``(C, H, W)`` around ``pixels`` ``(P, 2)`` over what is alike in ``guide``."""
    reach = CONTOUR_REACH
    stacked = functional.pad(torch.cat([images, guide[None]])[None], (reach,) * 4, mode="replicate")[0].flatten(1)
    width = guide.shape[1] + 2 * reach
    middle = (pixels[:, 0] + reach) * width + pixels[:, 1] + reach
    own, narrow = guide[pixels[:, 0], pixels[:, 1]], -0.5 / height[pixels[:, 0], pixels[:, 1]] ** 2
    total = images.new_zeros(len(images), len(pixels))
    weights = torch.zeros_like(own)
    for row in range(-reach, reach + 1):
        for column in range(-reach, reach + 1):
            distance = row**2 + column**2
            if distance > reach**2:
                continue
            values = stacked[:, middle + (row * width + column)]
            weight = torch.exp((values[-1] - own) ** 2 * narrow - distance / (2 * CONTOUR_WIDTH**2))
            total += weight * values[:-1]
            weights += weight
    return total / weights


def bone_level(missing: Tensor, refined: Tensor) -> Tensor:
    """Local mean of ``missing`` inside bone, there; zero elsewhere; all ``(B, 1, H, W)`` in HU.

    ``I`` is bone's inside: what the refined image shows above 250 HU behind a Gaussian of 2 pixels, less a rim of 2::

        G1(I) G16(I missing) / max(G16(I G1(I)), .01)

    Source: this project's.
    """
    bone = (gauss(refined, BONE_SMOOTHING) > BONE_HU).to(refined)
    # At the rim the blur that is missing inside is too much outside: both together would have no mean.
    inside = -functional.max_pool2d(-bone, 2 * BONE_RIM + 1, 1, BONE_RIM)
    soft = gauss(inside, 1.0)
    # Not by the share of bone alone: what is soft at the rim would come back short, and small bones are all rim.
    share = gauss(inside * soft, BONE_LEVEL_WIDTH).clamp_min(LEAST_SHARE)
    return soft * gauss(inside * missing, BONE_LEVEL_WIDTH) / share
