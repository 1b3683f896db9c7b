"""How good a restoration is: metrics in stated windows, a picture, reports, and the handlers that write them."""

from .alarms import LIMITS, Alarm, check_restoration, measure_restoration
from .anatomy import Drift, ResidualAnatomy, hu_drift, residual_anatomy
from .handlers import DoseReport, RestorationWriter, RestoredCase, dose_summary, restored_cases
from .metrics import (
    MASKS,
    WINDOWS,
    checked_windows,
    hu_bias,
    mean_and_std,
    noise_level,
    score_slices,
    score_stages,
    vif,
)
from .noise_power import NoisePower, noise_power_spectrum, square_regions
from .observer import (
    AucDifference,
    Detectability,
    auc_difference,
    dense_dog_channels,
    hotelling_auc,
    laguerre_gauss_channels,
)
from .panel import PANEL_SIZE, save_panel, save_residuals
from .reports import (
    insert_between_markers,
    markdown_table,
    paired_gains,
    patient_means,
    refuse_existing,
    spread,
    table,
    write_csv,
    write_json,
)
from .resolution import TaskTransfer, task_transfer
from .result import Result
from .store import RowStore
from .tissue import TISSUES, Contrast, TissueStatistics, contrast_to_noise, tissue_masks, tissue_statistics

__all__ = [
    "LIMITS",
    "MASKS",
    "PANEL_SIZE",
    "TISSUES",
    "WINDOWS",
    "Alarm",
    "AucDifference",
    "Contrast",
    "Detectability",
    "DoseReport",
    "Drift",
    "NoisePower",
    "ResidualAnatomy",
    "RestorationWriter",
    "RestoredCase",
    "Result",
    "RowStore",
    "TaskTransfer",
    "TissueStatistics",
    "auc_difference",
    "check_restoration",
    "checked_windows",
    "contrast_to_noise",
    "dense_dog_channels",
    "dose_summary",
    "hotelling_auc",
    "hu_bias",
    "hu_drift",
    "insert_between_markers",
    "laguerre_gauss_channels",
    "markdown_table",
    "mean_and_std",
    "measure_restoration",
    "noise_level",
    "noise_power_spectrum",
    "paired_gains",
    "patient_means",
    "refuse_existing",
    "residual_anatomy",
    "restored_cases",
    "save_panel",
    "save_residuals",
    "score_slices",
    "score_stages",
    "spread",
    "square_regions",
    "table",
    "task_transfer",
    "tissue_masks",
    "tissue_statistics",
    "vif",
    "write_csv",
    "write_json",
]
