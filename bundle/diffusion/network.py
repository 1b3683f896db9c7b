"""The denoiser: a transformer over latents of any size."""

# Shapes in this file: B batch, K latent channels, C width, h w latent.
from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.blocks.cablock import CABlock, FeedForward
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import Tensor, nn

#: Longest period of the sinusoids that encode a step number. MONAI's 10000 is made for a thousand steps; with five,
#: nearly all of its sinusoids would be constants.
MAX_PERIOD = 100

#: The inputs that an untrained denoiser can repeat.
SHORTCUTS = ("condition", "noisy")


class LatentTransformer(nn.Module):
    """Predict the clean latent (or the noise) from a noisy latent and the condition joined to it.

    Blocks of transposed attention (over channels, so no position embedding is needed and any size fits) and gated
    depthwise feed-forward, each modulated by the time step through adaLN-zero: every block starts as the identity.
    The output is a learned 1 x 1 shortcut of the input plus a head that starts at zero, so an untrained denoiser
    repeats one of its inputs. The blocks work on patches of the latent, the shortcut on the latent itself.

    Args:
        latent_channels: channels of the noisy latent and of the output.
        condition_channels: channels of the condition, which follow the latent's in the input.
        width: features of the blocks; even, and a multiple of ``num_heads``.
        depth: number of blocks.
        num_heads: attention heads.
        expansion: hidden features of the feed-forward, in widths.
        patch_size: rows and columns of the latent in one patch. Any latent fits: it is padded and cropped inside.
        shortcut: what the untrained denoiser repeats. ``condition`` (the latent of the degraded image) is a good first
            guess of the clean latent, prediction type ``sample``; ``noisy`` is one of the noise, type ``epsilon``.

    Raises:
        ValueError: an argument is out of range, or the condition can not be a first guess because its channels differ.

    Source: blocks of Restormer (CVPR 2022, arXiv 2111.09881) as MONAI has them; adaLN-zero of DiT (arXiv 2212.09748).
    """

    def __init__(
        self,
        latent_channels: int = 8,
        condition_channels: int = 8,
        width: int = 96,
        depth: int = 4,
        num_heads: int = 4,
        expansion: float = 2.0,
        patch_size: int = 2,
        shortcut: str = "condition",
    ) -> None:
        super().__init__()
        if width % 2 or width % num_heads:
            raise ValueError(f"width must be even and a multiple of num_heads ({num_heads}), got {width}")
        for name, value in (("depth", depth), ("patch_size", patch_size), ("latent_channels", latent_channels)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut must be one of {SHORTCUTS}, got {shortcut!r}")
        if shortcut == "condition" and condition_channels != latent_channels:
            raise ValueError(
                f"shortcut='condition' needs equal channels, got {latent_channels} of the latent "
                f"and {condition_channels} of the condition"
            )
        self.in_channels = latent_channels + condition_channels
        self.width = width
        self.patch_size = patch_size
        self.embed = nn.Conv2d(self.in_channels * patch_size**2, width, 3, padding=1)
        self.embed_time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.blocks = nn.ModuleList(_ModulatedBlock(width, num_heads, expansion) for _ in range(depth))
        self.head = nn.Conv2d(width, latent_channels * patch_size**2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.shortcut = nn.Conv2d(self.in_channels, latent_channels, 1, bias=False)
        with torch.no_grad():
            first = latent_channels if shortcut == "condition" else 0
            self.shortcut.weight.zero_()
            self.shortcut.weight[:, first : first + latent_channels, 0, 0] = torch.eye(latent_channels)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None) -> Tensor:
        """``(B, K, h, w)`` from the noisy latent and condition, joined along channels, at ``timesteps`` (B) or (1).

        The signature is that of MONAI's diffusion models, so its inferers (``mode="concat"``) and schedulers apply.

        Raises:
            ValueError: ``x`` has other channels, ``timesteps`` fits no batch, or a ``context`` is given.
        """
        if context is not None:
            raise ValueError("context must be None: the condition is joined to x along its channels (mode='concat')")
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must be (B, {self.in_channels}, h, w), got shape {tuple(x.shape)}")
        if timesteps.shape not in ((1,), x.shape[:1]):
            raise ValueError(f"timesteps must have shape (1,) or ({len(x)},), got {tuple(timesteps.shape)}")
        time = self.embed_time(get_timestep_embedding(timesteps, self.width, MAX_PERIOD).to(x.dtype))
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % self.patch_size, 0, -height % self.patch_size), mode="replicate")
        patches = F.pixel_unshuffle(padded, self.patch_size)
        feature = self.embed(patches.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            feature = block(feature, time)
        correction = F.pixel_shuffle(self.head(feature), self.patch_size)[..., :height, :width]
        return self.shortcut(x) + correction


class _ModulatedBlock(nn.Module):
    """MONAI's channel attention and feed-forward, shifted, scaled and gated by the time step (adaLN-zero)."""

    def __init__(self, width: int, num_heads: int, expansion: float) -> None:
        super().__init__()
        self.attention = _ChannelAttention(2, width, num_heads, bias=False)
        self.feed_forward = FeedForward(2, width, expansion, bias=False)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, feature: Tensor, time: Tensor) -> Tensor:
        """``(B, C, h, w)`` to the same, given the embedded time step ``(B, C)`` or ``(1, C)``."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulation(time)[..., None, None].chunk(6, dim=1)
        feature = feature + gate_a * self.attention(_layer_norm(feature) * (1 + scale_a) + shift_a)
        return feature + gate_f * self.feed_forward(_layer_norm(feature) * (1 + scale_f) + shift_f)


class _ChannelAttention(CABlock):
    """MONAI's transposed attention, reshaped by torch: MONAI's own forward needs einops, which it does not install."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, h, w)`` to the same."""
        query, key, value = self.qkv_dwconv(self.qkv(x)).flatten(2).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        mixed = self._attention_fn(F.normalize(query, dim=-1), F.normalize(key, dim=-1), value)
        return self.project_out(mixed.reshape(x.shape).contiguous(memory_format=torch.channels_last))


def _layer_norm(feature: Tensor) -> Tensor:
    """Normalise over channels at each place, so that a crop is treated as the whole image is."""
    return F.layer_norm(feature.permute(0, 2, 3, 1), feature.shape[1:2]).permute(0, 3, 1, 2)
