"""Noisy image in, refined image out: encoder, unrolled latent diffusion, decoder."""

# Shapes in this file: B batch, H W image, K latent channels, h w latent.
from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .sampling import PosteriorMeanScheduler


class LatentRefiner(nn.Module):
    """Refine an image by denoising a latent under the condition of the image's own; HU in, HU out.

    A frozen copy of the encoder as it came makes the latent of the target, so what diffusion learns stands still. The
    encoder itself makes condition and skips; it learns on, with denoiser and decoder. The reverse steps are unrolled,
    so the image loss reaches every one of them.

    Args:
        autoencoder: has ``encoder``, ``encode(image, noise, encoder) -> (latent, skips)`` and
            ``restore(image, latent, skips)``.
        denoiser: ``forward(x, timesteps)``, x the noisy latent joined with the condition along channels.
        scheduler: its ``timesteps`` are the reverse steps.
        train_encoder: whether the encoder learns on; else condition and skips stay those of stage 2.
        seed: fixes the noise that sampling starts from. Every image of a batch starts from the same, so a result
            depends on its image alone.

    Source: EGenDiff (arXiv 2509.23885), section on latent diffusion; unrolled steps after DiffIR (ICCV 2023).
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        denoiser: nn.Module,
        scheduler: PosteriorMeanScheduler,
        seed: int = 0,
        train_encoder: bool = True,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.denoiser = denoiser
        self.scheduler = scheduler
        self.seed = seed
        self.target_encoder = copy.deepcopy(autoencoder.encoder).requires_grad_(False).eval()
        self.autoencoder.encoder.requires_grad_(train_encoder).eval()

    def train(self, mode: bool = True) -> LatentRefiner:
        """As ever, but the encoders stay in evaluation: their statistics define the latent that diffusion learns."""
        super().train(mode)
        self.autoencoder.encoder.eval()
        self.target_encoder.eval()
        return self

    def forward(
        self, image: Tensor, target: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """The refined image, or with a target what :class:`~bundle.diffusion.DistillationLoss` needs.

        Args:
            image: ``(B, 1, H, W)`` in HU.
            target: the image to distil towards, same shape; None to restore.
            noise: what stage 1 took for noise in the image, HU, same shape, for an autoencoder that wants it.

        Returns:
            Without a target, the refined image ``(B, 1, H, W)`` in HU; the same for the same input.
            With a target, a dictionary: ``image`` (refined from the target's latent under noise), ``prediction`` (the
            denoiser's answer to the target's latent at a random step) and ``prediction_target`` (the answer it
            should have given), the last two ``(B, K, h, w)``.

        Raises:
            ValueError: ``image`` or ``target`` is not ``(B, 1, H, W)``, or their shapes differ.
        """
        if target is not None and target.shape != image.shape:
            raise ValueError(f"target must have the shape of image, {tuple(image.shape)}, got {tuple(target.shape)}")
        condition, skips = self.autoencoder.encode(image, noise)
        if target is None:
            return self.autoencoder.restore(image, self.denoise(self.fixed_noise(condition), condition), skips)

        with torch.no_grad():
            original, _ = self.autoencoder.encode(target, encoder=self.target_encoder)
        noise = torch.randn_like(original)
        last = torch.full(original.shape[:1], self.scheduler.num_train_timesteps - 1, device=original.device)
        latent = self.denoise(self.scheduler.add_noise(original, noise, last), condition)
        timesteps = torch.randint(0, self.scheduler.num_train_timesteps, original.shape[:1], device=original.device)
        noisy = self.scheduler.add_noise(original, noise, timesteps)
        return {
            "image": self.autoencoder.restore(image, latent, skips),
            "prediction": self._predict(noisy, condition, timesteps),
            "prediction_target": self.scheduler.prediction_target(original, noise),
        }

    def denoise(self, noisy: Tensor, condition: Tensor) -> Tensor:
        """All reverse steps, from ``z_T`` to ``z_0``; both inputs ``(B, K, h, w)``. Gradients pass."""
        # DiffusionInferer.sample does the same, but never with gradients.
        latent = noisy
        for timestep in self.scheduler.timesteps:
            prediction = self._predict(latent, condition, timestep.reshape(1).to(latent.device))
            latent, _ = self.scheduler.step(prediction, timestep, latent)
        return latent

    def fixed_noise(self, like: Tensor) -> Tensor:
        """The one noise field ``(B, K, h, w)`` that sampling starts from, equal for every image of the batch."""
        # Drawn on the CPU: a CUDA generator would give another field for the same seed.
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn((1, *like.shape[1:]), generator=generator)
        return noise.to(like).expand_as(like)

    def _predict(self, noisy: Tensor, condition: Tensor, timesteps: Tensor) -> Tensor:
        return self.denoiser(torch.cat([noisy, condition], dim=1), timesteps=timesteps)
