"""Weights from files: whole, or an error that names the file."""

from __future__ import annotations

import pytest
import torch

from bundle.inference import load_weights

from .parts import restorer


def saved(path, content):
    torch.save(content, path)
    return path


def other_weights():
    return {name: value + 1 for name, value in restorer().state_dict().items()}


@pytest.mark.parametrize("nested", [False, True])
def test_flat_and_nested_checkpoints_fill_the_network(tmp_path, nested):
    weights = other_weights()
    path = saved(tmp_path / "model.pt", {"network": weights, "optimizer": {"state": {}}} if nested else weights)
    network = load_weights(restorer(), path)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_a_part_of_the_network_takes_its_own_checkpoint(tmp_path):
    network = restorer()
    path = saved(tmp_path / "projection.pt", {"stage": {"layer.weight": torch.zeros(1, 1, 3, 3)}})
    load_weights(network.projection, path, key="stage")
    assert not network.projection.layer.weight.any() and network.refiner.layer.weight.all()


def test_a_part_of_a_whole_file_fills_a_part_alone(tmp_path):
    weights = other_weights()
    path = saved(tmp_path / "model.pt", weights)
    part = load_weights(restorer().projection, path, part="projection")
    assert all(torch.equal(value, weights[f"projection.{name}"]) for name, value in part.state_dict().items())
    with pytest.raises(ValueError, match="model.pt has no weights of a part 'decoder'"):
        load_weights(part, path, part="decoder")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.pt does not exist"):
        load_weights(restorer(), tmp_path / "nowhere.pt")


@pytest.mark.parametrize("keep", [0, 10, 600])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = saved(tmp_path / "model.pt", other_weights())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model.pt .*truncated"):
        load_weights(restorer(), path)


def test_a_git_lfs_pointer_is_no_weight_file(tmp_path):
    path = tmp_path / "model.pt"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="model.pt"):
        load_weights(restorer(), path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, {"network": {"layer": 3}}])
def test_a_file_without_a_state_dict_is_named(tmp_path, content):
    with pytest.raises(ValueError, match="model.pt must hold a state dict"):
        load_weights(restorer(), saved(tmp_path / "model.pt", content))


def test_keys_and_shapes_that_do_not_fit_are_named_and_nothing_is_loaded(tmp_path):
    weights = other_weights()
    weights["refiner.layer.weight"] = torch.zeros(2)
    weights["stray"] = weights.pop("fusion.noise_25")
    network = restorer()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="model.pt.*LowDoseRestorer") as error:
        load_weights(network, saved(tmp_path / "model.pt", weights))
    for part in ("missing: fusion.noise_25", "unexpected: stray", "refiner.layer.weight ((2,), expected (1, 1, 3, 3))"):
        assert part in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_weights_of_a_diverged_training_are_refused(tmp_path):
    weights = other_weights()
    weights["refiner.layer.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite: refiner.layer.weight"):
        load_weights(restorer(), saved(tmp_path / "model.pt", weights))


def test_an_uncalibrated_fusion_may_be_loaded(tmp_path):
    weights = other_weights()
    weights["fusion.noise_25"] = torch.tensor(float("nan"))
    assert load_weights(restorer(), saved(tmp_path / "model.pt", weights)).fusion.noise_25.isnan()
