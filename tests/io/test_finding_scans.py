"""Which scans are found under a path, and how they are parted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.io import find_scans, read_ct, split_by_patient, write_sinogram


@pytest.fixture
def folder(tmp_path, write_head, write_slice, head, geometry):
    """A NIfTI, a sinogram, a series of three, a lone slice, an MR series and a letter."""
    import torch

    write_head(name="head.nii.gz")
    write_sinogram(tmp_path / "deep" / "measured.npz", torch.zeros(geometry.sinogram_shape), geometry)
    for z in range(3):
        write_slice(f"series/{z}", head[z], z=4.0 * z)
    write_slice("lone.dcm", head[0], SeriesInstanceUID="1.2.3", PatientID="phantom-2")
    write_slice("brain", head[0], SeriesInstanceUID="1.2.4", Modality="MR")
    (tmp_path / "letter.txt").write_text("Dear colleague")
    return tmp_path


def test_every_scan_at_and_below_a_folder_is_found(folder):
    scans = {scan["name"]: scan for scan in find_scans(folder)}
    assert {name: (scan["kind"], scan["patient"]) for name, scan in scans.items()} == {
        "head": ("ct", "head"),
        "measured": ("sinogram", "measured"),
        "series": ("ct", "phantom-1"),
        "lone": ("ct", "phantom-2"),
    }
    assert len(scans["series"]["path"]) == 3 and read_ct(scans["series"]["path"]).image_hu.shape == (3, 20, 24)
    assert set(scans["head"]) == {"path", "patient", "name", "kind"}


@pytest.mark.parametrize("name", ["head.nii.gz", "deep/measured.npz", "lone.dcm", "series/1"])
def test_single_file_is_a_scan(name, folder):
    (scan,) = find_scans(folder / name)
    assert scan["path"] == str(folder / name)


def test_names_are_unique_when_files_are_called_alike(write_slice, head, tmp_path):
    for patient in "ab":
        write_slice(f"{patient}/ct.dcm", head[0], SeriesInstanceUID=f"1.2.{ord(patient)}", PatientID=patient)
    write_slice("c/1", head[0], SeriesInstanceUID="1.7")
    assert [scan["name"] for scan in find_scans(tmp_path)] == ["1", "a_ct", "b_ct"]


def test_paths_without_a_scan_are_refused_by_name(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match=f"{empty.name}: expected .* found none"):
        find_scans(empty)
    with pytest.raises(ValueError, match="nowhere: no such"):
        find_scans(empty / "nowhere")
    with pytest.raises(ValueError, match="letter.txt: expected"):
        find_scans(folder / "letter.txt")
    with pytest.raises(ValueError, match="brain: expected .*1 of modality MR"):
        find_scans(folder / "brain")


def scans_of(patients):
    return [{"patient": patient, "name": f"{patient}-{index}"} for index, patient in enumerate(patients)]


@settings(deadline=None, max_examples=50)
@given(
    patients=st.lists(st.sampled_from("abcdef"), min_size=3, max_size=20).filter(lambda p: len(set(p)) > 2),
    fraction=st.floats(0.05, 0.6),
    seed=st.integers(0, 99),
)
def test_no_patient_is_on_both_sides(patients, fraction, seed):
    scans = scans_of(patients)
    parts = split_by_patient(scans, fraction, seed=seed)
    sides = [{scan["patient"] for scan in parts[side]} for side in ("training", "validation")]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == set(patients)
    assert split_by_patient(scans, fraction, seed=seed) == parts
    assert sum(map(len, parts.values())) == len(scans)


def test_patterns_name_the_patients_of_each_side():
    parts = split_by_patient(scans_of(["chest_1", "chest_2", "head_1", "knee_1"]), ["head_*"], exclude="knee_1")
    assert {side: [s["patient"] for s in items] for side, items in parts.items()} == {
        "training": ["chest_1", "chest_2"],
        "validation": ["head_1"],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation": ["foot_*"]}, r"validation: 'foot_\*' matches none of the patients \['chest_1', 'head_1'\]"),
        ({"validation": "head_1", "exclude": ["foot"]}, "exclude: 'foot' matches none"),
        ({"validation": "head_1", "exclude": "head_*"}, "validation: 'head_1' matches none"),
        ({"validation": "*"}, "the training side of the split is empty"),
        ({"validation": []}, "the validation side of the split is empty"),
        ({"validation": 1.5}, "fraction between 0 and 1"),
        ({"validation": 0.9}, "the training side of the split is empty"),
    ],
)
def test_split_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        split_by_patient(scans_of(["chest_1", "head_1"]), **arguments)
