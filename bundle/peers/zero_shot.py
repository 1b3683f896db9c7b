"""Zero-shot Noise2Noise: a tiny network learns from the one sinogram that it is to denoise."""

# Shapes in this file: B crops, V views, D detector cells.

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classical import FbpPeer
from .scan import Scan

# What makes 1 inside the network: line integrals, about the largest of a body; standard deviations of the noise.
_LARGEST, _DEVIATIONS = 8.0, 4.0
# Line integrals beyond are starved; held back here, so that exp stays small.
_GREATEST_LINE_INTEGRAL = 12.0
_SMOOTHING = 5
# Standard deviations in a median absolute difference of two normal samples.
_MEDIAN_DIFFERENCE = 0.6745 * math.sqrt(2)


class ZeroShotPeer:
    """Denoise each sinogram by a network trained on itself, then FBP.

    Both diagonals of every 2x2 square make a pair of half-sized sinograms; the network learns one from the other, and
    to treat the whole as it treats the halves. Published for images; here in the projection domain, where
    neighbours' noise is independent. Random crops bound the time.

    Args:
        steps: optimisation steps a slice.
        crop: side of the square crops, even, at most the sinogram's own.
        crops: crops a step.
        features: channels of the network.
        learning_rate: of Adam; halved after each third of the steps.
        standardise: give the network the detail of the sinogram (its difference from a 5x5 mean) in units of the local
            noise, which is proportional to ``exp(p / 2)``. As published (False), the network sees line integrals: the
            noise is a hundredth of their range, thick rays count twentyfold, and little is learnt in affordable time.
        seed: of weights and crops.
        window: ramp window of the FBP.
        backend: of the backprojection.

    Raises:
        ValueError: an argument out of range.

    Source: Mansour and Heckel, CVPR 2023 (arXiv 2303.11253), Eqs. 4 to 9 and its network.
    """

    def __init__(
        self,
        steps: int = 400,
        crop: int = 64,
        crops: int = 2,
        features: int = 48,
        learning_rate: float = 1e-3,
        standardise: bool = True,
        seed: int = 0,
        window: str = "ram-lak",
        backend: str = "auto",
    ) -> None:
        for name, value in (("steps", steps), ("crops", crops), ("features", features)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if crop < 4 or crop % 2:
            raise ValueError(f"crop must be even and 4 or more, got {crop}")
        self.steps = steps
        self.crop = crop
        self.crops = crops
        self.features = features
        self.learning_rate = learning_rate
        self.standardise = standardise
        self.seed = seed
        self.base = FbpPeer(window, backend=backend)

    def __call__(self, scan: Scan) -> Tensor:
        """HU ``(S, 1, H, W)``."""
        denoised = torch.cat([self.denoise(one) for one in scan.sinogram.split(1)])
        clean = Scan(sinogram=denoised, geometry=scan.geometry, mu_water=scan.mu_water)
        return self.base(clean)

    def denoise(self, sinogram: Tensor) -> Tensor:
        """Denoised line integrals of one slice, ``(1, 1, V, D)``; the same for the same input and seed."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            network = _network(self.features).to(sinogram.device)
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, max(1, self.steps // 3), gamma=0.5)
        smooth, unit = self._offset_and_unit(sinogram)
        noisy = (sinogram - smooth) / unit
        with torch.enable_grad():
            for _ in range(self.steps):
                optimizer.zero_grad()
                self._loss(network, self._crops(noisy, generator)).backward()
                optimizer.step()
                schedule.step()
        with torch.no_grad():
            return sinogram - unit * network(noisy)

    def _offset_and_unit(self, sinogram: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """What is taken off the sinogram, and what the rest is divided by, before the network sees it."""
        if not self.standardise:
            return 0.0, _LARGEST
        padded = F.pad(sinogram, (_SMOOTHING // 2,) * 4, mode="replicate")
        smooth = F.avg_pool2d(padded, _SMOOTHING, 1)
        relative = torch.exp(smooth.clamp(max=_GREATEST_LINE_INTEGRAL) / 2)
        # Neighbours differ by noise nearly everywhere; a sinogram without any keeps a unit above 0.
        level = ((sinogram - smooth) / relative).diff(dim=-1).abs().median() / _MEDIAN_DIFFERENCE
        return smooth, relative * level.clamp_min(1e-6) * _DEVIATIONS

    def _crops(self, sinogram: Tensor, generator: torch.Generator) -> Tensor:
        views, cells = sinogram.shape[2:]
        height, width = (min(self.crop, size - size % 2) for size in (views, cells))
        crops = []
        for _ in range(self.crops):
            top = int(torch.randint(views - height + 1, (), generator=generator))
            left = int(torch.randint(cells - width + 1, (), generator=generator))
            crops.append(sinogram[..., top : top + height, left : left + width])
        return torch.cat(crops).contiguous(memory_format=torch.channels_last)

    def _loss(self, network: nn.Module, noisy: Tensor) -> Tensor:
        first, second = diagonal_pair(noisy)
        clean_first, clean_second = first - network(first), second - network(second)
        whole_first, whole_second = diagonal_pair(noisy - network(noisy))
        residual = (second - clean_first).square() + (first - clean_second).square()
        consistency = (clean_first - whole_first).square() + (clean_second - whole_second).square()
        return (residual + consistency).mean() / 2


def diagonal_pair(image: Tensor) -> tuple[Tensor, Tensor]:
    """Means over both diagonals of every 2x2 square: ``(B, 1, V, D)``, even, to two ``(B, 1, V/2, D/2)``."""
    first = (image[..., ::2, 1::2] + image[..., 1::2, ::2]) / 2
    second = (image[..., ::2, ::2] + image[..., 1::2, 1::2]) / 2
    return first, second


def _network(features: int) -> nn.Sequential:
    network = nn.Sequential(
        nn.Conv2d(1, features, 3, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(features, features, 3, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(features, 1, 1),
    )
    return network.to(memory_format=torch.channels_last)
