"""Scripts import each other by name, as they do when they are run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SCRIPTS = str(Path(__file__).resolve().parents[2] / "scripts")


@pytest.fixture(autouse=True)
def script_path(monkeypatch):
    monkeypatch.setattr(sys, "path", [SCRIPTS, *sys.path])
