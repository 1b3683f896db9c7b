"""Noisy sinogram in, restored image out: fusion, the whole pipeline, its weights, and stacks of slices."""

from .calibration import (
    CalibrationImages,
    KnownNoise,
    RestorerCalibration,
    calibrate_fusions,
    calibration_images,
    fusion_values,
    scan_noise,
)
from .collaborative import collaborative_wiener
from .fusion import FUSION_MODES, SelfCorrectingFusion
from .held_out import Candidates, HeldOutFusion
from .inferer import STAGES, PrepareScan, StackInferer
from .nonlocal_means import guided_nonlocal_means
from .pipeline import FUSION_ORDERS, LowDoseRestorer, Prepared, Restoration
from .weights import load_weights, read_weights
from .wiener import local_wiener

__all__ = [
    "FUSION_MODES",
    "FUSION_ORDERS",
    "STAGES",
    "CalibrationImages",
    "Candidates",
    "HeldOutFusion",
    "KnownNoise",
    "LowDoseRestorer",
    "PrepareScan",
    "Prepared",
    "Restoration",
    "RestorerCalibration",
    "SelfCorrectingFusion",
    "StackInferer",
    "calibrate_fusions",
    "calibration_images",
    "collaborative_wiener",
    "fusion_values",
    "guided_nonlocal_means",
    "load_weights",
    "local_wiener",
    "read_weights",
    "scan_noise",
]
