"""Every stage trains on a phantom, from noise alone, and goes on where it stopped."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events

from bundle.projection import PrepareThinnedPair

from .files import PEERS, TRAIN

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
    noise = {"incident_photons", "electronic_variance"}
    assert {key for crop in workflow.train_dataset[0] for key in crop} == {"sinogram", *noise}
    weights = stages.weights["projection_weights"]
    settings = {"dataset_dir": str(volumes), "output_dir": str(tmp_path), "projection_weights": weights}
    workflow = start(TRAIN[1], "smoke.json", **settings)
    assert {key for crop in workflow.train_dataset[0] for key in crop} == {"fbp", "prior", "noise"}


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


def test_the_cross_fitted_pair_trains(stages, volumes, start, tmp_path):
    weights = {"projection_weights": stages.weights["projection_weights"]}
    settings = {"dataset_dir": str(volumes), "output_dir": str(tmp_path), **weights}
    start(TRAIN[1], "cross_fit.json", "smoke.json", **settings).run()
    assert (tmp_path / "autoencoder.pt").is_file()


@pytest.mark.parametrize("config", TRAIN[1:])
def test_the_supervised_twin_learns_from_the_reference_and_says_so(config, stages, volumes, start, tmp_path):
    weights = {key: stages.weights[key] for key in ("projection_weights", "autoencoder_weights")}
    weights = weights if config == TRAIN[2] else {"projection_weights": weights["projection_weights"]}
    settings = {"dataset_dir": str(volumes), "output_dir": str(tmp_path), **weights}
    twin = start(config, "cross_fit.json", "supervised.json", "smoke.json", **settings)
    scan, thinning, pair = (twin.parser.get_parsed_content(key) for key in ("scan", "thinning", "pair"))
    item = scan(twin.train_dataset.data[0])
    taught = pair(thinning(item))
    assert torch.equal(taught["prior"], item["reference"])
    assert not torch.equal(taught["fbp"], item["reference"])
    assert "reference" not in taught
    twin.run()
    assert (tmp_path / config.replace("train_", "").replace(".json", ".pt")).is_file()


def test_neighbor2neighbor_trains(volumes, start, tmp_path):
    workflow = start(
        TRAIN[0], "neighbor2neighbor.json", "smoke.json", dataset_dir=str(volumes), output_dir=str(tmp_path)
    )
    workflow.run()
    assert workflow.parser.get_parsed_content("loss").tau is None
    assert (tmp_path / "projection.pt").is_file()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stage_1_trains_on_thinned_photons(precision, volumes, start, tmp_path):
    settings = {"dataset_dir": str(volumes), "output_dir": str(tmp_path), "precision": precision}
    workflow = start(TRAIN[0], "thinned_projection.json", "smoke.json", **settings)
    workflow.run()
    assert isinstance(workflow.trainer.prepare_batch, PrepareThinnedPair)
    assert workflow.trainer.inferer.precision == precision
    assert workflow.parser.get_parsed_content("loss").tau is None
    assert (tmp_path / "projection.pt").is_file()


PARTS = ("projection", "refiner.autoencoder", "refiner")


@pytest.mark.parametrize(("config", "stage", "part"), zip(TRAIN, STAGES, PARTS))
def test_training_goes_on_from_weights(config, stage, part, stages, volumes, start, tmp_path):
    weights = torch.load(getattr(stages, stage) / f"{stage}.pt", weights_only=True)
    whole = tmp_path / "model.pt"
    torch.save({f"{part}.{name}": value for name, value in weights.items()} | {"fusion.scale": torch.ones(1)}, whole)
    needed = {key: stages.weights[key] for key in ("projection_weights", "autoencoder_weights")[: TRAIN.index(config)]}
    settings = {"dataset_dir": str(volumes), "output_dir": str(tmp_path), "start_weights": str(whole)}
    workflow = start(config, "smoke.json", "fine_tune.json", **settings, **needed, start_part=part)
    loaded = workflow.trainer.network.state_dict()
    assert set(loaded) == set(weights) and all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_noise2inverse_trains_from_noise_alone(volumes, start, tmp_path):
    workflow = start(PEERS[0], "smoke.json", dataset_dir=str(volumes), output_dir=str(tmp_path))
    assert workflow.check_properties() == []
    assert {key for crop in workflow.train_dataset[0] for key in crop} == {"image", "label"}
    workflow.run()
    weights = torch.load(tmp_path / "noise2inverse.pt", weights_only=True)
    assert weights and all(torch.isfinite(value).all() for value in weights.values())
