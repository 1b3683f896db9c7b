"""Stage 3: five steps of latent diffusion, distilled towards the prior."""

from .loss import DistillationLoss
from .network import LatentTransformer
from .refiner import LatentRefiner
from .sampling import PosteriorMeanScheduler

__all__ = ["DistillationLoss", "LatentRefiner", "LatentTransformer", "PosteriorMeanScheduler"]
