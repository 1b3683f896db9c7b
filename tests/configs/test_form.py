"""What must hold for every config as it is written: a config accepts a misspelt key without a word."""

from __future__ import annotations

import ast
import re
from pydoc import locate

import pytest
from monai.bundle import ComponentLocator

from .files import (
    CONFIGS,
    INFER,
    OVERRIDES,
    PEERS,
    REFERENCE,
    TRAIN,
    merged,
    read,
    references,
    strings,
    targets,
    whole_configs,
    without_comments,
)

WHOLE = whole_configs()
UNDER_OVERRIDE = [(below, override) for override, uses in OVERRIDES.items() for below in uses]

#: Read by MONAI itself, from outside the config.
ENTRY_POINTS = {"imports", "bundle_root", "dataset_dir", "output_dir", "initialize", "run", "train", "validate"}

#: What makes a stage or a task itself. Everything else that has one name has one meaning.
OWN = {
    "imports",
    "output_dir",
    "network_def",
    "network",
    "loss",
    "learning_rate",
    "optimizer",
    "train",
    "validate",
    "preprocessing",
    "dataset",
    "handlers",
    "window",
    "max_epochs",
}


@pytest.fixture(scope="module")
def components():
    return ComponentLocator()


@pytest.mark.parametrize("name", [*WHOLE, *OVERRIDES])
def test_every_target_exists(name, components):
    for target in targets(read(name)):
        path = target if "." in target else components.get_component_module_name(target)
        assert isinstance(path, str), f"{target} is {path}"
        assert callable(locate(path if path.endswith(target) else f"{path}.{target}")), target


@pytest.mark.parametrize("name", [*WHOLE, *OVERRIDES])
def test_own_targets_name_a_room_and_no_file(name):
    assert all(target.count(".") == 2 for target in targets(read(name)) if target.startswith("bundle."))


@pytest.mark.parametrize("name", WHOLE)
def test_every_reference_leads_somewhere(name):
    config = read(name)
    for reference in references(config):
        block = config
        for part in re.split("#|::", reference):
            assert part in block, f"@{reference}"
            block = block[part]


@pytest.mark.parametrize(("below", "override"), UNDER_OVERRIDE)
def test_every_reference_leads_somewhere_under_an_override(below, override):
    config = merged(*below, override)
    assert {re.split("#|::", reference)[0] for reference in references(config)} <= set(config)


@pytest.mark.parametrize("name", WHOLE)
def test_every_key_is_used(name):
    config = read(name)
    used = {re.split("#|::", reference)[0] for reference in references(config)}
    assert {key for key in config if not key.startswith("_")} - used - ENTRY_POINTS == set()


@pytest.mark.parametrize(("below", "override"), UNDER_OVERRIDE)
def test_an_override_brings_no_key_that_nothing_reads(below, override):
    used = {re.split("#|::", reference)[0] for reference in references(merged(*below, override))}
    assert {key for key in read(override) if not key.startswith("_")} - used - ENTRY_POINTS == set()


@pytest.mark.parametrize("name", [*WHOLE, *OVERRIDES])
def test_every_expression_is_python(name):
    for text in strings(read(name)):
        if text.startswith("$"):
            ast.parse(REFERENCE.sub("reference", text[1:]))


def test_every_config_is_known_to_these_tests():
    assert {path.name for path in CONFIGS.glob("*.json")} == {*WHOLE, *OVERRIDES, "metadata.json"}
    assert set(WHOLE) >= {*TRAIN, *INFER, *PEERS}


def test_neighbor2neighbor_differs_from_stage_one_by_the_mask_and_by_knowing_no_photons_alone():
    whole, peer = read("train_projection.json"), read("neighbor2neighbor.json")
    assert {key for key in peer if not key.startswith("_")} == {"loss", "projection_def"}
    assert without_comments(peer["loss"]) == without_comments({**whole["loss"], "tau": None})
    assert without_comments(peer["projection_def"]) == without_comments(
        {**whole["projection_def"], "noise_aware": False}
    )


def test_the_supervised_twin_differs_from_the_cross_fitted_stages_by_its_target_alone():
    twin, training = read("supervised.json"), merged("train_diffusion.json", "cross_fit.json")
    assert {key for key in twin if not key.startswith("_")} == {"scan", "pair"}
    assert without_comments(twin["scan"]) == {**training["scan"], "reference": True}
    assert twin["pair"]["pair"] == training["pair"]


@pytest.mark.parametrize("names", [(*TRAIN, *PEERS), INFER], ids=["train", "infer"])
def test_equal_names_mean_equal_blocks_among_siblings(names):
    configs = [read(name) for name in names]
    for key in set.union(*map(set, configs)) - OWN:
        blocks = [without_comments(config[key]) for config in configs if key in config and not key.startswith("_")]
        assert all(block == blocks[0] for block in blocks), key


@pytest.mark.parametrize("name", TRAIN)
def test_training_and_inference_share_scanner_and_networks(name):
    training, inference = read(name), read("inference.json")
    shared = {key for key in training if key.endswith("_def")} - {"network_def"}
    for key in ["geometry", "photons", "electronic_variance", "dose", "device", "initialize", *shared]:
        assert without_comments(training[key]) == without_comments(inference[key]), key
    if "scheduler" in training:
        assert training["scheduler"] == inference["scheduler"]


def test_what_a_stage_trains_is_what_inference_builds():
    assert read("train_projection.json")["network_def"] == "@projection_def"
    autoencoder = without_comments(read("train_autoencoder.json")["network_def"])
    assert autoencoder == read("inference.json")["autoencoder_def"]


def test_stage_three_trains_the_refiner_of_inference():
    trained, built = read("train_diffusion.json")["network_def"], read("inference.json")["refiner_def"]
    # There the autoencoder comes with the weights of stage 2, here with all the others.
    assert trained["autoencoder"]["network"] == built["autoencoder"]
    assert {**trained, "autoencoder": None} == {**built, "autoencoder": None}
