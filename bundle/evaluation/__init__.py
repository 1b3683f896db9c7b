"""How good a restoration is: metrics in stated windows, a picture, reports, and the handlers that write them."""

from .handlers import DoseReport, RestorationWriter, RestoredCase, dose_summary, restored_cases
from .metrics import (
    WINDOWS,
    checked_windows,
    hu_bias,
    mean_and_std,
    noise_level,
    score_slices,
    score_stages,
)
from .panel import PANEL_SIZE, save_panel
from .reports import refuse_existing, table, write_csv, write_json

__all__ = [
    "PANEL_SIZE",
    "WINDOWS",
    "DoseReport",
    "RestorationWriter",
    "RestoredCase",
    "checked_windows",
    "dose_summary",
    "hu_bias",
    "mean_and_std",
    "noise_level",
    "refuse_existing",
    "restored_cases",
    "save_panel",
    "score_slices",
    "score_stages",
    "table",
    "write_csv",
    "write_json",
]
