"""Every stage trains on a phantom, from noise alone, and goes on where it stopped."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events

from .files import OVERRIDES, TRAIN

STAGES = ("projection", "autoencoder", "diffusion")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_leaves_weights_a_checkpoint_and_curves(stage, stages):
    folder = getattr(stages, stage)
    for name in (f"{stage}.pt", f"best_{stage}.pt"):
        weights = torch.load(folder / name, weights_only=True)
        assert weights and all(torch.isfinite(value).all() for value in weights.values())
    assert (folder / "checkpoint_epoch=1.pt").is_file()
    assert list(folder.glob("events.out.tfevents.*"))


@pytest.mark.parametrize("config", TRAIN)
def test_a_train_config_has_all_properties(config, stages, volumes, start, tmp_path):
    needed = {} if config == TRAIN[0] else {"projection_weights": stages.weights["projection_weights"]}
    if config == TRAIN[2]:
        needed["autoencoder_weights"] = stages.weights["autoencoder_weights"]
    workflow = start(config, "smoke.json", dataset_dir=str(volumes), output_dir=str(tmp_path), **needed)
    assert workflow.check_properties() == []


def test_training_items_hold_nothing_clean(stages, volumes, start, tmp_path):
    workflow = start(TRAIN[0], "smoke.json", dataset_dir=str(volumes), output_dir=str(tmp_path))
    assert {key for crop in workflow.train_dataset[0] for key in crop} == {"sinogram", "dose"}
    weights = stages.weights["projection_weights"]
    settings = {"dataset_dir": str(volumes), "output_dir": str(tmp_path), "projection_weights": weights}
    workflow = start(TRAIN[1], "smoke.json", **settings)
    assert {key for crop in workflow.train_dataset[0] for key in crop} == {"fbp", "prior"}


def test_training_resumes_from_its_checkpoint(volumes, start, tmp_path):
    settings = {"dataset_dir": str(volumes), "output_dir": str(tmp_path)}
    start(TRAIN[0], "smoke.json", **settings).run()
    stopped = torch.load(tmp_path / "checkpoint_epoch=1.pt", weights_only=False)
    started = []

    def note(engine):
        weights = engine.network.state_dict()
        same = all(torch.equal(weights[key], value) for key, value in stopped["network"].items())
        started.append((engine.state.epoch, same))

    workflow = start(TRAIN[0], "smoke.json", **settings, resume=True, max_epochs=2)
    workflow.trainer.add_event_handler(Events.EPOCH_STARTED, note)
    workflow.run()
    assert started == [(2, True)]
    assert (tmp_path / "checkpoint_epoch=2.pt").is_file()


def test_resuming_without_a_checkpoint_names_the_file_it_misses(volumes, start, tmp_path):
    workflow = start(TRAIN[0], "smoke.json", dataset_dir=str(volumes), output_dir=str(tmp_path), resume=True)
    with pytest.raises(RuntimeError) as raised:
        workflow.run()
    assert "checkpoint_epoch=1.pt" in str(raised.value.__cause__)


@pytest.mark.skipif("cross_fit.json" not in OVERRIDES, reason="no such override")
def test_the_cross_fitted_pair_trains(stages, volumes, start, tmp_path):
    weights = {"projection_weights": stages.weights["projection_weights"]}
    settings = {"dataset_dir": str(volumes), "output_dir": str(tmp_path), **weights}
    start(TRAIN[1], "cross_fit.json", "smoke.json", **settings).run()
    assert (tmp_path / "autoencoder.pt").is_file()
