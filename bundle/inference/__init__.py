"""Noisy sinogram in, restored image out: fusion, the whole pipeline, its weights, and stacks of slices."""

from .fusion import FUSION_MODES, SelfCorrectingFusion
from .inferer import STAGES, PrepareScan, StackInferer
from .pipeline import FUSION_ORDERS, LowDoseRestorer, Restoration
from .weights import load_weights, read_weights

__all__ = [
    "FUSION_MODES",
    "FUSION_ORDERS",
    "STAGES",
    "LowDoseRestorer",
    "PrepareScan",
    "Restoration",
    "SelfCorrectingFusion",
    "StackInferer",
    "load_weights",
    "read_weights",
]
