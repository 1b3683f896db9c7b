"""Files and physics as MONAI dictionary transforms."""

from .crops import TissueWeightd, tissue_weight
from .files import LoadScand
from .low_dose import RandThinCountsd, SimulateScand, ThinCountsd, noise_seed
from .photons import EstimatePhotonsd
from .reconstruct import RandMixd, ReconstructPaird, RemovedNoised
from .slices import training_slices

__all__ = [
    "EstimatePhotonsd",
    "LoadScand",
    "RandMixd",
    "RandThinCountsd",
    "ReconstructPaird",
    "RemovedNoised",
    "SimulateScand",
    "ThinCountsd",
    "TissueWeightd",
    "noise_seed",
    "tissue_weight",
    "training_slices",
]
