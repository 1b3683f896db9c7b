"""The metadata says what the project is and needs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from monai.bundle import verify_metadata

from .files import CONFIGS, ROOT, read

SCHEMA = Path(__file__).with_name("meta_schema_20240725.json")


def pinned() -> dict[str, str]:
    """Versions of the direct requirements, on the Python that runs most."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"([\w.-]+)==([\w.]+)(; python_version < .*)?", line) for line in lines]
    return {match[1]: match[2] for match in found if match}


def test_the_metadata_follow_the_schema(tmp_path):
    # verify_metadata downloads the schema unless it already lies where it would go.
    schema = shutil.copy(SCHEMA, tmp_path)
    verify_metadata(
        meta_file=str(CONFIGS / "metadata.json"), filepath=str(schema), hash_val="06954cad2cc5d3784e72077ac76f0fc8"
    )


def test_versions_are_those_that_are_installed():
    metadata, requirements = read("metadata.json"), pinned()
    assert metadata["monai_version"] == requirements.pop("monai")
    assert metadata["pytorch_version"] == requirements.pop("torch")
    assert metadata["numpy_version"] == requirements.pop("numpy")
    assert metadata["required_packages_version"] == requirements


def test_every_requirement_is_the_constrained_version():
    constraints = (ROOT / "requirements-constraints.txt").read_text(encoding="utf-8").splitlines()
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            assert "==" not in line or line in constraints


def test_the_network_is_described_by_the_scanner_it_is_built_for():
    geometry, network = read("inference.json")["geometry"], read("metadata.json")["network_data_format"]
    assert network["inputs"]["image"]["spatial_shape"] == [geometry["num_views"], geometry["num_cells"]]
    assert network["outputs"]["pred"]["spatial_shape"] == geometry["image_shape"]


def test_the_version_has_an_entry_in_the_changelog():
    metadata = read("metadata.json")
    assert metadata["version"] in metadata["changelog"]
