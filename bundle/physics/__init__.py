"""CT as mathematics: geometry, projection, reconstruction, dose, units. Needs torch and numba only."""

from .dose import line_integral_variance, simulate_low_dose, thin_line_integrals
from .fbp import RAMP_WINDOWS, FilteredBackprojection
from .geometry import FanBeamGeometry
from .projector import FanBeamProjector
from .units import MU_WATER, attenuation_to_hu, hu_to_attenuation

__all__ = [
    "MU_WATER",
    "RAMP_WINDOWS",
    "FanBeamGeometry",
    "FanBeamProjector",
    "FilteredBackprojection",
    "attenuation_to_hu",
    "hu_to_attenuation",
    "line_integral_variance",
    "simulate_low_dose",
    "thin_line_integrals",
]
