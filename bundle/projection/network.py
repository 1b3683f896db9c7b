"""The sinogram denoiser: a residual U-Net on line integrals."""

# Shapes in this file: B batch, C channel, V views, D detector cells.

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundle.physics import noise_level

#: Incident photons a ray that a sinogram is taken to have where nobody says: about a quarter of 1.5e5.
TYPICAL_PHOTONS = 4e4
_SMOOTHING = 5


class SinogramDenoiser(nn.Module):
    """Denoised sinogram ``y + s(y) g(y)``: a U-Net ``g`` without batch norm, in units of the local noise ``s``.

    Noise in line integrals grows as ``exp(p / 2)``, twentyfold between air and p = 6, and as the photons become fewer.
    Therefore ``g`` sees the sinogram and its detail (the difference from a 5x5 mean) divided by the noise that the mean
    and the photons of the scan suggest, and its answer is multiplied by the same: to the network every dose is alike.
    Where the photons are not known they are taken to be :data:`TYPICAL_PHOTONS`. The first convolution
    works at half resolution (pixel-unshuffle). The last one starts at zero, so that the untrained network is the
    identity.

    Args:
        features: channels of the first level; level ``l`` has ``features * (1 + l / 2)``.
        levels: resolutions of the U-Net, each half the one before.
        noise_aware: whether the photons of a scan are looked at; if not, each is taken to have
            :data:`TYPICAL_PHOTONS`, as published self-supervised denoisers do that know nothing of them.

    Raises:
        ValueError: ``features`` below 2 or ``levels`` below 1.

    Source: the U-Net of Neighbor2Neighbor, CVPR 2021 (48 features), narrowed and put behind a pixel-unshuffle.
    """

    def __init__(self, features: int = 48, levels: int = 3, noise_aware: bool = True) -> None:
        super().__init__()
        if features < 2:
            raise ValueError(f"features must be at least 2, got {features}")
        if levels < 1:
            raise ValueError(f"levels must be at least 1, got {levels}")
        self.levels = levels
        self.noise_aware = bool(noise_aware)
        widths = [features * (2 + level) // 2 for level in range(levels)]
        # Two maps (sinogram, detail), four pixels each after the unshuffle.
        self.encoder = nn.ModuleList(_convolutions(a, b) for a, b in zip([8, *widths], widths))
        # The coarsest level costs a 16th of the first one: depth is cheapest here.
        self.bottom = _convolutions(widths[-1], widths[-1])
        self.decoder = nn.ModuleList(_convolutions(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1]))
        self.last = nn.Conv2d(widths[0], 4, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.to(memory_format=torch.channels_last)

    def forward(
        self,
        sinogram: Tensor,
        incident_photons: float | Tensor | None = None,
        electronic_variance: float | Tensor | None = None,
    ) -> Tensor:
        """Denoise line integrals (B, 1, V, D), any V and D; same shape and unit.

        Args:
            sinogram: noisy line integrals.
            incident_photons: photons a ray of this scan, or (B, 1, 1, 1) of each item; None: not known.
            electronic_variance: of the detector, photons squared, likewise; None: not known, so none.

        Raises:
            ValueError: not four axes or not one channel; photons that are not positive.
        """
        if sinogram.ndim != 4 or sinogram.shape[1] != 1:
            raise ValueError(f"sinogram must be (B, 1, V, D), got {tuple(sinogram.shape)}")
        views, cells = sinogram.shape[2:]
        multiple = 2**self.levels
        padded = F.pad(sinogram, (0, -cells % multiple, 0, -views % multiple), mode="replicate")

        smooth = F.avg_pool2d(padded, _SMOOTHING, 1, _SMOOTHING // 2, count_include_pad=False)
        if incident_photons is None or not self.noise_aware:
            incident_photons, electronic_variance = TYPICAL_PHOTONS, None
        noise = noise_level(
            smooth, incident_photons, electronic_variance=0.0 if electronic_variance is None else electronic_variance
        )
        maps = torch.cat([padded / 4, (padded - smooth) / noise], dim=1)
        x = F.pixel_unshuffle(maps, 2).contiguous(memory_format=torch.channels_last)

        skips: list[Tensor] = []
        for level, convolutions in enumerate(self.encoder):
            x = convolutions(F.avg_pool2d(x, 2) if level else x)
            skips.append(x)
        x = self.bottom(skips.pop())
        for convolutions in self.decoder:
            x = convolutions(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skips.pop()], dim=1))
        residual = noise * F.pixel_shuffle(self.last(x), 2)
        return sinogram + residual[..., :views, :cells]


def _convolutions(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1),
        nn.LeakyReLU(0.1, inplace=True),
        nn.Conv2d(channels_out, channels_out, 3, padding=1),
        nn.LeakyReLU(0.1, inplace=True),
    )
