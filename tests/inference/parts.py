"""Stand-ins for the trained parts, and a scanner of a few kilobytes."""

from __future__ import annotations

from torch import Tensor, nn

from bundle.inference import LowDoseRestorer, SelfCorrectingFusion
from bundle.physics import FanBeamGeometry

SCANNER = FanBeamGeometry(
    source_to_center=746.02,
    source_to_detector=1361.2,
    num_views=60,
    num_cells=48,
    cell_pitch=26.0,
    pixel_size=350 / 32,
    image_shape=(32, 32),
)


class Smooth(nn.Module):
    """A stand-in for a network: one convolution that averages 3x3."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1, padding_mode="replicate", bias=False)
        nn.init.constant_(self.layer.weight, 1 / 9)

    def forward(self, value: Tensor, noise: Tensor | None = None, **scan: float) -> Tensor:
        return self.layer(value)


class Unchanged(nn.Module):
    """A network of any stage that changes nothing."""

    def forward(self, value: Tensor, noise: Tensor | None = None, **scan: float) -> Tensor:
        return value


class NoiseItself(nn.Module):
    """A refiner that returns the noise it is told of."""

    def forward(self, value: Tensor, noise: Tensor) -> Tensor:
        return noise


def restorer(**kwargs) -> LowDoseRestorer:
    fusion = SelfCorrectingFusion()
    fusion.noise_25.fill_(20.0)
    fusion.gradient_25.fill_(1.0)
    parts = {
        "projection": Smooth(),
        "refiner": Smooth(),
        "fusion": fusion,
        "geometry": SCANNER,
        "level_width": 0.0,
        **kwargs,
    }
    return LowDoseRestorer(**parts)
