"""What is trained for the ablations, and by which command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def train_ablations():
    import train_ablations

    return train_ablations


def test_everything_that_measuring_looks_for_is_trained(train_ablations):
    import measure_ablations

    found = measure_ablations.find_ablations(Path("model.pt"), None, Path("scratch"))
    wanted = {(one.name, one.kind) for one in found if one.kind != "inference"}
    assert {(run.name, run.stage) for run in train_ablations.plan() if run.stage != "autoencoder"} == wanted


def test_an_autoencoder_comes_before_the_diffusion_that_needs_it(train_ablations):
    places = {(run.name, run.stage): place for place, run in enumerate(train_ablations.plan())}
    assert len(places) == len(train_ablations.plan())
    changed = [name for name, stage in places if stage == "autoencoder"]
    assert set(changed) == {"no_noise_map", "no_skips", "plain", "short"}
    assert all(places[name, "autoencoder"] < places[name, "diffusion"] for name in changed)
    # The others borrow it.
    assert places["short", "autoencoder"] < min(place for (_, stage), place in places.items() if stage == "diffusion")


def test_every_file_of_a_run_is_there_and_made_for_its_stage(train_ablations):
    for run in train_ablations.plan():
        for name in run.overrides:
            content = json.loads((train_ablations.CONFIGS / name).read_text(encoding="utf-8"))
            assert f"train_{run.stage}.json" in content.get("_for_", [f"train_{run.stage}.json"])


def test_a_finished_training_is_not_repeated(train_ablations, tmp_path, monkeypatch):
    started = []

    def run(command, **_):
        folder = Path(command[command.index("--output_dir") + 1])
        started.append((folder.parent.name, folder.name))
        folder.mkdir(parents=True)
        (folder / f"{folder.name}.pt").write_bytes(b"weights")

    monkeypatch.setattr(train_ablations.subprocess, "run", run)
    weights = {"projection": str(tmp_path / "projection.pt")}
    words = ["--dataset_dir", str(tmp_path), "--validation", "ada", "--output", str(tmp_path / "out")]
    words += [word for name, path in weights.items() for word in (f"--{name}", path)]
    words += ["--only", "no_skips"]
    assert train_ablations.main(words) == 0
    assert started == [("no_skips", "autoencoder"), ("no_skips", "diffusion")]
    (tmp_path / "out" / "no_skips" / "diffusion.pt").unlink()
    train_ablations.main(words)
    assert started[2:] == [("no_skips", "diffusion")]
    train_ablations.main([*words, "epsilon"])
    assert started[3:] == [("short", "autoencoder"), ("epsilon", "diffusion")]


def test_an_unknown_name_is_refused(train_ablations, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_ablations.main(["--dataset_dir", str(tmp_path), "--validation", "a", "--only", "nothing"])
    assert "no ablation 'nothing' is trained" in capsys.readouterr().err
