"""Files in and out: CT images, measured sinograms, finding and parting scans. All of pydicom and nibabel is here."""

from .ct import read_ct
from .errors import end_with_cause
from .frame import CTVolume, ScanFrame
from .inputs import find_scans, split_by_patient
from .nifti import write_nifti
from .sinogram import ScanNoise, read_scan_noise, read_sinogram, write_sinogram
from .writing import replace_when_complete

__all__ = [
    "CTVolume",
    "ScanFrame",
    "ScanNoise",
    "end_with_cause",
    "find_scans",
    "read_ct",
    "read_scan_noise",
    "read_sinogram",
    "replace_when_complete",
    "split_by_patient",
    "write_nifti",
    "write_sinogram",
]
