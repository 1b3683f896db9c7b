"""Few-step diffusion without added noise."""

from __future__ import annotations

import torch
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor

#: What a denoiser may predict. Velocity is left out: the loss has no term for it.
PREDICTION_TYPES = ("sample", "epsilon")


class PosteriorMeanScheduler(DDPMScheduler):
    """DDPM whose reverse step is the posterior mean ``E[z_{t-1} | z_t, z_0]`` itself: five steps, deterministic.

    The schedule is ``beta = linspace(sqrt(beta_start), sqrt(beta_end), T)^2``. At the defaults alpha_bar ends at
    .0013: the last latent is all but pure noise, so sampling can start from noise.

    Args:
        num_train_timesteps: T, the number of steps in training and in sampling.
        beta_start: first beta, in (0, 1).
        beta_end: last beta, in (0, 1).
        prediction_type: ``sample``: the denoiser predicts z_0. ``epsilon``: it predicts the noise, and the z_0 that
            follows is clamped, because an error of the first step is multiplied by
            ``sqrt((1 - alpha_bar) / alpha_bar)``, 28 at the defaults.
        latent_limit: the clamp of ``epsilon``, in standard deviations of the latent.

    Raises:
        ValueError: an argument is out of range.

    Source: Ho et al., 2020 (arXiv 2006.11239), Eqs. 6 and 7; few unrolled steps after DiffIR (ICCV 2023).
    """

    def __init__(
        self,
        num_train_timesteps: int = 5,
        beta_start: float = 0.1,
        beta_end: float = 0.99,
        prediction_type: str = "sample",
        latent_limit: float = 5.0,
    ) -> None:
        if num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps must be 1 or more, got {num_train_timesteps}")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"expected 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}")
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type must be one of {PREDICTION_TYPES}, got {prediction_type!r}")
        if not latent_limit > 0:
            raise ValueError(f"latent_limit must be positive, got {latent_limit}")
        super().__init__(
            num_train_timesteps,
            schedule="scaled_linear_beta",
            clip_sample=prediction_type == "epsilon",
            clip_sample_min=-latent_limit,
            clip_sample_max=latent_limit,
            prediction_type=prediction_type,
            beta_start=beta_start,
            beta_end=beta_end,
        )
        # MONAI keeps the schedule as plain attributes, which stay behind when a module moves to a device.
        for name in ("betas", "alphas", "alphas_cumprod", "one"):
            values = getattr(self, name)
            delattr(self, name)
            self.register_buffer(name, values, persistent=False)

    def step(
        self, model_output: Tensor, timestep: int, sample: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """One reverse step: ``(z_{t-1}, predicted z_0)`` from the denoiser's output and z_t, all of one shape.

        ``generator`` is part of the scheduler interface and has nothing to draw: no noise is added.
        """
        original = self.predicted_original(model_output, timestep, sample)
        return self._get_mean(timestep, original, sample), original

    def predicted_original(self, model_output: Tensor, timestep: int, sample: Tensor) -> Tensor:
        """The z_0 that the denoiser's output stands for, given z_t (Ho et al., Eq. 15 for ``epsilon``)."""
        if self.prediction_type == "sample":
            return model_output
        alpha_bar = self.alphas_cumprod[timestep]
        original = (sample - (1 - alpha_bar).sqrt() * model_output) / alpha_bar.sqrt()
        return original.clamp(*self.clip_sample_values)

    def prediction_target(self, original: Tensor, noise: Tensor) -> Tensor:
        """What the denoiser should have said: the noise for ``epsilon``, z_0 for ``sample``."""
        return noise if self.prediction_type == "epsilon" else original
