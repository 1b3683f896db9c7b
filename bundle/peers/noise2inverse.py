"""Noise2Inverse: the views of one scan, split; what one part shows is learnt from the others."""

# Shapes in this file: B batch, K splits of the views, H W image, V views, D detector cells.

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from typing import Any

import torch
from monai.inferers import Inferer
from monai.transforms import RandomizableTransform, Transform
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from bundle.physics import MU_WATER, FanBeamGeometry, FilteredBackprojection, attenuation_to_hu

#: Which side of a pair is the single split: ``X:1`` the target, ``1:X`` the input.
STRATEGIES = ("X:1", "1:X")

# Every geometry brings one operator a split.
_reconstruction = lru_cache(maxsize=16)(FilteredBackprojection)


def split_views(sinogram: Tensor, geometry: FanBeamGeometry, splits: int) -> list[tuple[Tensor, FanBeamGeometry]]:
    """Part a scan into scans of every ``splits``-th view: disjoint, and all views together.

    Args:
        sinogram: line integrals ``(..., V, D)``.
        geometry: its scan.
        splits: number of parts K.

    Returns:
        K pairs of line integrals ``(..., about V / K, D)`` and their geometry.

    Raises:
        ValueError: fewer than two parts or fewer than two views in one, a sinogram that does not fit.
    """
    if splits < 2 or geometry.num_views < 2 * splits:
        raise ValueError(f"splits must be from 2 to half the {geometry.num_views} views, got {splits}")
    if tuple(sinogram.shape[-2:]) != geometry.sinogram_shape:
        raise ValueError(f"sinogram must end in (V, D) = {geometry.sinogram_shape}, got shape {tuple(sinogram.shape)}")
    angles = geometry.view_angles
    parts = []
    for first in range(splits):
        chosen = tuple(angles[first::splits].tolist())
        part = dataclasses.replace(geometry, num_views=len(chosen), angles=chosen)
        parts.append((sinogram[..., first::splits, :], part))
    return parts


@torch.no_grad()
def reconstruct_splits(
    sinogram: Tensor,
    geometry: FanBeamGeometry,
    splits: int = 4,
    window: str = "ram-lak",
    backend: str = "auto",
    mu_water: float = MU_WATER,
) -> Tensor:
    """FBP of every part of :func:`split_views`: ``(B, 1, V, D)`` to ``(B, K, H, W)`` in HU, without gradient."""
    images = []
    for part, scan in split_views(sinogram, geometry, splits):
        reconstruct = _reconstruction(scan, window, backend).to(sinogram.device)
        images.append(attenuation_to_hu(reconstruct(part.contiguous()), mu_water))
    return torch.cat(images, dim=1)


def leave_one_out(images: Tensor) -> Tensor:
    """Mean of all splits but one, ``(..., K, H, W)`` to the same: channel k lacks split k."""
    count = images.shape[-3]
    return (images.sum(dim=-3, keepdim=True) - images) / (count - 1)


class ReconstructSplitsd(Transform):
    """Reconstruct the views of a sinogram in K parts: ``(1, V, D)`` to ``image`` ``(K, H, W)``, HU.

    Adds ``fbp``, the mean of the parts ``(1, H, W)``, HU.

    Args:
        key: the sinogram.
        splits: number of parts K.
        window: ramp window.
        image_key: where the K images go.
        mean_key: where their mean goes.
        backend: of the backprojection, see :class:`bundle.physics.FanBeamProjector`.
        device: where to reconstruct; the images come back to where the sinogram is.

    Raises:
        ValueError: as in :func:`split_views`.
    """

    def __init__(
        self,
        key: str = "sinogram",
        splits: int = 4,
        window: str = "ram-lak",
        image_key: str = "image",
        mean_key: str = "fbp",
        backend: str = "auto",
        device: torch.device | str = "cpu",
    ) -> None:
        self.key = key
        self.splits = splits
        self.window = window
        self.image_key = image_key
        self.mean_key = mean_key
        self.backend = backend
        self.device = device

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        sinogram = convert_to_tensor(item[self.key], track_meta=False)
        if sinogram.ndim != 3 or sinogram.shape[0] != 1:
            raise ValueError(f"{self.key} must be (1, V, D), got shape {tuple(sinogram.shape)}")
        geometry = FanBeamGeometry.from_json(item["geometry"])
        images = reconstruct_splits(sinogram[None].to(self.device), geometry, self.splits, self.window, self.backend)
        images = images[0].to(sinogram.device)
        return {**item, self.image_key: images, self.mean_key: images.mean(dim=0, keepdim=True)}


class RandSplitPaird(RandomizableTransform):
    """Draw which split stands alone; ``image`` ``(K, H, W)`` becomes input ``image`` and target ``label``, (1, H, W).

    The two sides share no view, so no noise.

    Args:
        image_key: the K images, HU; then the input.
        label_key: the target.
        strategy: ``X:1``: the mean of the others is the input and the lone split the target. ``1:X``: the reverse.

    Raises:
        ValueError: an unknown strategy.

    Source: Hendriksen et al., IEEE Trans. Comput. Imaging 6, 2020 (arXiv 2001.11801), Eq. 16 and section III-C.
    """

    def __init__(self, image_key: str = "image", label_key: str = "label", strategy: str = "X:1") -> None:
        super().__init__(prob=1.0)
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {STRATEGIES}, got {strategy!r}")
        self.image_key = image_key
        self.label_key = label_key
        self.strategy = strategy

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        images = convert_to_tensor(item[self.image_key], track_meta=False)
        alone = int(self.R.randint(images.shape[0]))
        single, others = images[alone : alone + 1], leave_one_out(images)[alone : alone + 1]
        item[self.image_key], item[self.label_key] = (others, single) if self.strategy == "X:1" else (single, others)
        return item


class SplitAverageInferer(Inferer):
    """The network's answers to all K inputs of one scan, averaged: ``(B, K, H, W)`` to ``(B, 1, H, W)``, HU.

    Args:
        strategy: the one of training, see :class:`RandSplitPaird`.

    Raises:
        ValueError: an unknown strategy.
    """

    def __init__(self, strategy: str = "X:1") -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {STRATEGIES}, got {strategy!r}")
        self.strategy = strategy

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Average over the splits, one network run at a time."""
        sides = leave_one_out(inputs) if self.strategy == "X:1" else inputs
        answers = [network(side, *args, **kwargs) for side in sides.split(1, dim=1)]
        return torch.stack(answers).mean(dim=0)


class ImageDenoiser(nn.Module):
    """An image network in HU: ``image + scale_hu * network(image / scale_hu)``.

    Args:
        network: ``(B, 1, H, W)`` to the same, H and W as given.
        scale_hu: HU that make 1 inside the network.

    Raises:
        ValueError: ``scale_hu`` not positive.
    """

    def __init__(self, network: nn.Module, scale_hu: float = 250.0) -> None:
        super().__init__()
        if not scale_hu > 0:
            raise ValueError(f"scale_hu must be positive, got {scale_hu}")
        self.network = network
        self.scale_hu = scale_hu
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        """Denoised ``(B, 1, H, W)``, HU.

        Raises:
            ValueError: another number of axes or channels.
        """
        if image.ndim != 4 or image.shape[1] != 1:
            raise ValueError(f"image must be (B, 1, H, W) in HU, got shape {tuple(image.shape)}")
        scaled = (image / self.scale_hu).contiguous(memory_format=torch.channels_last)
        return image + self.scale_hu * self.network(scaled)
