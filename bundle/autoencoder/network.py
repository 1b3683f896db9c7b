"""An autoencoder whose latent belongs to the target and whose skips belong to the noisy input."""

# Shapes in this file: B batch, C channel, H W image, K latent channels, h w latent (H/8, W/8 rounded up).
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import ResidualUnit
from torch import Tensor, nn

#: Rows and columns of the image that become one row and one column of the latent.
STRIDE = 8

#: The autoencoder works at this many scales: H/2, H/4 and H/8.
NUM_SCALES = 3


# HU of noise that count as little: below, the noise level is linear. Side of the window that it is measured in, pixels.
_NOISE_UNIT, _NOISE_WINDOW = 8.0, 7


class DistillationAutoencoder(nn.Module):
    """Restore a noisy image: ``image + scale_hu * D(latent, skips of image)``; HU in, HU out.

    While it learns (stage 2) the latent is that of the target; later (stage 3) a diffusion model supplies it. The
    skips and the outer sum always carry the noisy input. Its last convolution starts at zero: an untrained
    autoencoder returns its input.

    Args:
        channels: features at H/2, H/4 and H/8.
        latent_channels: channels of the latent, which has unit variance in each.
        skip_channels: channels of the skips at H/2, H/4 and H/8. Narrow on purpose: wide skips let the decoder ignore
            the latent.
        num_blocks: residual blocks at each scale, in the encoder and in the decoder.
        scale_hu: HU that make 1 inside the networks.
        noise_aware: the encoder also sees what stage 1 took for noise (``noise`` of :meth:`encode`) and its local size.
            A denoiser that has to guess the noise smooths what is quiet and leaves noise in what is loud; one that
            does not see what was taken away cannot bring back the detail in it.

    Raises:
        ValueError: ``channels`` or ``skip_channels`` do not name three positive numbers, or a number is not positive.

    Source: the encoder and decoder with three skips of EGenDiff (arXiv 2509.23885); their layers are this project's.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 96),
        latent_channels: int = 8,
        skip_channels: Sequence[int] = (8, 8, 8),
        num_blocks: int = 1,
        scale_hu: float = 250.0,
        noise_aware: bool = True,
    ) -> None:
        super().__init__()
        for name, values in (("channels", channels), ("skip_channels", skip_channels)):
            if len(values) != NUM_SCALES or min(values) < 1:
                raise ValueError(f"{name} must be {NUM_SCALES} positive numbers, got {values}")
        for name, value in (("latent_channels", latent_channels), ("num_blocks", num_blocks), ("scale_hu", scale_hu)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self.latent_channels = latent_channels
        self.scale_hu = scale_hu
        self.noise_aware = bool(noise_aware)
        self.encoder = Encoder(channels, latent_channels, skip_channels, num_blocks, 3 if self.noise_aware else 1)
        self.decoder = Decoder(channels, latent_channels, skip_channels, num_blocks)
        self.to(memory_format=torch.channels_last)

    def encode(
        self, image: Tensor, noise: Tensor | None = None, encoder: Encoder | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Latent ``(B, K, h, w)`` of unit variance and the three skips, finest first, of an image in HU.

        ``noise`` is what stage 1 took for noise, ``x_ld - xhat`` in HU, in the shape of the image; None: none, as in a
        target. Without ``noise_aware`` it is not looked at. In training mode the latent is normalised by its own batch,
        else by the statistics kept from training. ``encoder`` takes the place of the autoencoder's own.

        Raises:
            ValueError: ``image`` is not ``(B, 1, H, W)``, or ``noise`` has another shape.
        """
        encoder = self.encoder if encoder is None else encoder
        features = encoder(self._scaled(image, noise, "image"))
        return encoder.latent(features), encoder.skips(features)

    def decode(self, latent: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Residual ``(B, 1, 8h, 8w)``, in units of ``scale_hu``, of a latent ``(B, K, h, w)`` and three skips."""
        return self.decoder(latent, skips)

    def restore(self, image: Tensor, latent: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """The image ``(B, 1, H, W)`` in HU plus its decoded residual."""
        residual = self.decode(latent, skips)[..., : image.shape[-2], : image.shape[-1]]
        return image + self.scale_hu * residual

    def forward(self, image: Tensor, target: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Restore ``image`` with the latent of ``target`` (stage 2), or with its own; all ``(B, 1, H, W)`` in HU.

        ``noise`` is that of ``image``, see :meth:`encode`.

        Raises:
            ValueError: ``image`` or ``target`` is not ``(B, 1, H, W)``, or the shapes differ.
        """
        if target is not None and target.shape != image.shape:
            raise ValueError(f"target must have the shape of image, {tuple(image.shape)}, got {tuple(target.shape)}")
        features = self.encoder(self._scaled(image, noise, "image"))
        # Only the latent that is decoded may enter the running statistics: they describe what diffusion will predict.
        of_target = features if target is None else self.encoder(self._scaled(target, None, "target"))
        latent = self.encoder.latent(of_target)
        return self.restore(image, latent, self.encoder.skips(features))

    def _scaled(self, image: Tensor, noise: Tensor | None, name: str) -> Tensor:
        """What the encoder is given, ``(B, inputs, H, W)``, padded to multiples of 8."""
        if image.ndim != 4 or image.shape[1] != 1:
            raise ValueError(f"{name} must be (B, 1, H, W) in HU, got shape {tuple(image.shape)}")
        if noise is not None and noise.shape != image.shape:
            raise ValueError(f"noise must have the shape of {name}, {tuple(image.shape)}, got {tuple(noise.shape)}")
        height, width = image.shape[-2:]
        scaled = image / self.scale_hu
        if self.noise_aware:
            noise = torch.zeros_like(image) if noise is None else noise
            # Noise spans from a few HU to a thousand: by its logarithm each doubling counts the same.
            level = torch.log2(1 + _local_size(noise) / _NOISE_UNIT) / 4
            scaled = torch.cat([scaled, level, noise / self.scale_hu], dim=1)
        return F.pad(scaled, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")


def _local_size(noise: Tensor) -> Tensor:
    """Root mean square around each pixel."""
    margin = (_NOISE_WINDOW // 2,) * 4
    return F.avg_pool2d(F.pad(noise.square(), margin, mode="replicate"), _NOISE_WINDOW, 1).sqrt()


class Encoder(nn.Module):
    """Features of a scaled image (and its noise) at three scales; heads for the latent and for the skips."""

    def __init__(
        self,
        channels: Sequence[int],
        latent_channels: int,
        skip_channels: Sequence[int],
        num_blocks: int,
        inputs: int = 1,
    ) -> None:
        super().__init__()
        # Half the resolution before the first convolution: the full one costs four times as much and sees no more.
        self.stem = nn.Conv2d(4 * inputs, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList(_residual_blocks(count, num_blocks) for count in channels)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in zip(channels, channels[1:], strict=False))
        self.skip_heads = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(channels, skip_channels, strict=True))
        self.latent_head = nn.Conv2d(channels[-1], latent_channels, 1)
        # Diffusion adds noise of unit variance; the latent must be of the same size for the schedule to mean anything.
        self.latent_norm = nn.BatchNorm2d(latent_channels, affine=False, momentum=0.05)

    def forward(self, scaled: Tensor) -> list[Tensor]:
        """Features at H/2, H/4, H/8 of ``(B, inputs, H, W)``; H and W multiples of 8."""
        feature = F.pixel_unshuffle(scaled, 2).contiguous(memory_format=torch.channels_last)
        feature = self.blocks[0](self.stem(feature))
        features = [feature]
        for down, block in zip(self.downs, self.blocks[1:], strict=True):
            feature = block(down(feature))
            features.append(feature)
        return features

    def latent(self, features: Sequence[Tensor]) -> Tensor:
        """Latent of unit variance, from the coarsest features."""
        return self.latent_norm(self.latent_head(features[-1]))

    def skips(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Narrow projections of the features, finest first."""
        return [head(feature) for head, feature in zip(self.skip_heads, features, strict=True)]


class Decoder(nn.Module):
    """A scaled residual image from a latent and three skips."""

    def __init__(
        self, channels: Sequence[int], latent_channels: int, skip_channels: Sequence[int], num_blocks: int
    ) -> None:
        super().__init__()
        inputs = (*channels[:-1], latent_channels)
        self.merges = nn.ModuleList(
            nn.Conv2d(a + skip, b, 3, padding=1) for a, skip, b in zip(inputs, skip_channels, channels, strict=True)
        )
        self.blocks = nn.ModuleList(_residual_blocks(count, num_blocks) for count in channels)
        self.ups = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in zip(channels, channels[1:], strict=False))
        self.head = nn.Conv2d(channels[0], 4, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, latent: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """``(B, 1, 8h, 8w)`` from a latent ``(B, K, h, w)`` and skips, finest first."""
        feature = latent
        for scale in reversed(range(NUM_SCALES)):
            merged = torch.cat([feature, skips[scale]], dim=1).contiguous(memory_format=torch.channels_last)
            feature = self.blocks[scale](self.merges[scale](merged))
            if scale:
                feature = F.pixel_shuffle(self.ups[scale - 1](feature), 2)
        return F.pixel_shuffle(self.head(feature), 2)


def _residual_blocks(channels: int, count: int) -> nn.Sequential:
    """MONAI's two-convolution residual unit, without normalisation, which would lose the HU level."""
    return nn.Sequential(
        *(
            ResidualUnit(2, channels, channels, subunits=2, act="SWISH", norm=None, dropout=None, last_conv_only=True)
            for _ in range(count)
        )
    )
