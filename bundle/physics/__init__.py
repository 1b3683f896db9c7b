"""CT as mathematics: geometry, projection, reconstruction, dose, units. Needs torch and numba only."""

from .artefacts import (
    TwoEnergyBeam,
    breathe,
    detector_gain,
    metal_inserts,
    move_between_views,
    scan_with_two_energies,
    shoulders,
    truncate_detector,
)
from .bodies import abdomen_phantom, chest_phantom, mixed_phantom
from .dose import (
    check_fractions,
    expected_log_bias,
    line_integral_variance,
    log_bias,
    noise_level,
    simulate_low_dose,
    thin_line_integrals,
)
from .fbp import RAMP_WINDOWS, FilteredBackprojection
from .geometry import FanBeamGeometry
from .noise_model import NoiseModel, estimate_noise_model
from .phantoms import Ellipse, Phantom, insert_phantom, low_contrast_phantom, rod_places
from .projector import FanBeamProjector
from .threads import in_threads
from .units import MU_WATER, attenuation_to_hu, hu_to_attenuation

__all__ = [
    "MU_WATER",
    "RAMP_WINDOWS",
    "Ellipse",
    "FanBeamGeometry",
    "FanBeamProjector",
    "FilteredBackprojection",
    "NoiseModel",
    "Phantom",
    "TwoEnergyBeam",
    "abdomen_phantom",
    "attenuation_to_hu",
    "breathe",
    "check_fractions",
    "chest_phantom",
    "detector_gain",
    "estimate_noise_model",
    "expected_log_bias",
    "hu_to_attenuation",
    "in_threads",
    "insert_phantom",
    "line_integral_variance",
    "log_bias",
    "low_contrast_phantom",
    "metal_inserts",
    "mixed_phantom",
    "move_between_views",
    "noise_level",
    "rod_places",
    "scan_with_two_energies",
    "shoulders",
    "simulate_low_dose",
    "thin_line_integrals",
    "truncate_detector",
]
