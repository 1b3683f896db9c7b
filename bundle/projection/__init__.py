"""Stage 1: a sinogram denoiser that learns from noisy sinograms alone."""

from .batch import (
    AlphaRamp,
    FiniteLoss,
    MixedPrecisionInferer,
    PrepareReconstruction,
    PrepareSubPair,
    PrepareThinnedPair,
    ReconstructionInferer,
)
from .loss import SimilarityLoss, SubPairTarget
from .network import SinogramDenoiser
from .sampler import ContextualSubsampler, SubPairPlan

__all__ = [
    "AlphaRamp",
    "ContextualSubsampler",
    "FiniteLoss",
    "MixedPrecisionInferer",
    "PrepareReconstruction",
    "PrepareSubPair",
    "PrepareThinnedPair",
    "ReconstructionInferer",
    "SimilarityLoss",
    "SinogramDenoiser",
    "SubPairPlan",
    "SubPairTarget",
]
