"""What the front page tells a reader to type is true."""

from __future__ import annotations

import re
import shlex

import pytest

from bundle.io import read_sinogram

from .files import CONFIGS, ROOT, read

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(command)
    for block in re.findall(r"```sh\n(.*?)```", README, re.S)
    for command in block.replace("\\\n", " ").splitlines()
    if "monai.bundle run" in command
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[5].removeprefix("configs/"))
def test_a_command_names_a_config_and_keys_that_it_has(command):
    config = read(command[command.index("--config_file") + 1].removeprefix("configs/"))
    assert {word[2:] for word in command if word.startswith("--")} <= {"config_file", *config}


def test_every_key_that_is_named_in_passing_belongs_to_a_config():
    known = {key for path in CONFIGS.glob("*.json") for key in read(path.name)}
    named = set(re.findall(r"--(\w+)", README)) - {"config_file", "projection", "diffusion", "output"}
    assert named <= known


def test_the_snippet_writes_a_sinogram_that_can_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(compile(snippet, "README.md", "exec"), {})
    stack, geometry = read_sinogram("scan.npz")
    assert tuple(stack.shape[1:]) == geometry.sinogram_shape


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("**/*.md")) + [ROOT / "README.md"], ids=lambda p: p.name)
def test_every_file_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert link.endswith(".png") or (page.parent / link).exists(), link
    for path in re.findall(r"`((?:bundle|configs|scripts)/[\w/]+\.\w+)`", text):
        assert (ROOT / path).exists(), path
