"""A stored row is valid for what made it: weights, settings, and the code of the rooms that it went through."""

from __future__ import annotations

import pytest
from monai.bundle import ConfigParser


@pytest.fixture
def measuring():
    import measuring

    return measuring


@pytest.fixture
def code(measuring, tmp_path, monkeypatch):
    """Write the code of a room."""
    monkeypatch.setattr(measuring, "ROOT", tmp_path)

    def write(room, text):
        path = tmp_path / "bundle" / room / "code.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    for room in (*measuring.OUR_ROOMS, "peers", "physics"):
        write(room, f'"""{room}."""\nx = 1\n')
    return write


def test_words_about_the_code_are_not_the_code(measuring, code):
    before = measuring.code_checksum()
    code("peers", '"""Other words."""\n\n# Why.\nx = (\n    1\n)\n')
    assert measuring.code_checksum() == before
    code("peers", "x = 2\n")
    assert measuring.code_checksum() != before


@pytest.mark.parametrize(
    ("room", "changed"),
    [
        ("peers", {"zs_n2n", "fbp_ram-lak"}),
        ("inference", {"restored", "supervised"}),
        ("projection", {"zs_n2n", "fbp_ram-lak", "restored", "supervised"}),
        ("physics", set()),
    ],
)
def test_a_method_is_measured_anew_when_its_code_changes(measuring, code, tmp_path, room, changed):
    (tmp_path / "model.pt").write_bytes(b"weights")
    names = ["fbp_ram-lak", "zs_n2n", "restored", "supervised"]

    def versions():
        return measuring.method_versions(names, ConfigParser({"a_def": 1}), tmp_path / "model.pt")

    before = versions()
    code(room, "x = 2\n")
    assert {name for name, version in versions().items() if version != before[name]} == changed


def test_peers_need_not_be_measured_anew_when_our_fusion_changes(measuring, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    names = ["nlm", "neighbor2neighbor", "noise2inverse", "restored", "supervised"]

    def changed(**settings: int) -> set[str]:
        one, other = (
            measuring.method_versions(names, ConfigParser(content), tmp_path / "model.pt")
            for content in ({"projection_def": 1, "fusion_def": 1}, {"projection_def": 1, "fusion_def": 1} | settings)
        )
        return {name for name in names if one[name] != other[name]}

    assert changed(fusion_def=2) == {"restored", "supervised"}
    assert changed(projection_def=2) == {"neighbor2neighbor", "restored", "supervised"}
