"""Stage 2: the autoencoder that carries a noisy image past a small latent of its distillation target."""

from .batch import PrepareDistillationPair
from .loss import StructureLoss
from .network import DistillationAutoencoder

__all__ = ["DistillationAutoencoder", "PrepareDistillationPair", "StructureLoss"]
