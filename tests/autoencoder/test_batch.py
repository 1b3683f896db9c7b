"""What a step of stages 2 and 3 may see of a batch."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.inferers import SimpleInferer

from bundle.autoencoder import DistillationAutoencoder, PrepareDistillationPair, StructureLoss


class Watched(dict):
    """A batch that writes down which of its items were read."""

    def __init__(self, *args):
        super().__init__(*args)
        self.read = set()

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)

    get = values = items = None


def batch(size=16):
    return Watched({key: torch.randn(2, 1, size, size) for key in ("fbp", "prior", "reference", "sinogram")})


def test_training_reads_only_the_noisy_image_and_the_prior():
    data = batch()
    image, label, args, keywords = PrepareDistillationPair()(data)
    assert data.read == {"fbp", "prior"}
    assert image is not label and label is keywords["target"] and args == ()
    torch.testing.assert_close(label, data["prior"])


def test_a_network_that_wants_it_is_told_the_noise():
    data = Watched(batch() | {"noise": torch.rand(2, 1, 16, 16)})
    _, _, _, keywords = PrepareDistillationPair(noise_key="noise")(data)
    assert data.read == {"fbp", "prior", "noise"}
    torch.testing.assert_close(keywords["noise"], data["noise"])


def test_training_gives_the_same_whatever_the_reference_is():
    data = batch()
    spoilt = Watched(data | {"reference": torch.full((2, 1, 16, 16), float("nan"))})
    for first, second in zip(PrepareDistillationPair()(data)[:2], PrepareDistillationPair()(spoilt)[:2], strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("keys", [{"input_key": "reference"}, {"target_key": "reference"}, {"noise_key": "reference"}])
def test_the_reference_can_not_be_learned_from(keys):
    with pytest.raises(ValueError, match="low-dose data alone"):
        PrepareDistillationPair(**keys)


@pytest.mark.parametrize(
    ("pass_target", "read"), [(True, {"fbp", "prior", "reference"}), (False, {"fbp", "reference"})]
)
def test_validation_measures_against_the_reference(pass_target, read):
    data = batch()
    _, label, _, keywords = PrepareDistillationPair(reference_key="reference", pass_target=pass_target)(data)
    assert data.read == read
    assert set(keywords) == ({"target"} if pass_target else set())
    torch.testing.assert_close(label, data["reference"])


def test_both_images_are_detached_plain_tensors():
    data = {key: MetaTensor(torch.randn(1, 1, 8, 8, requires_grad=True)) for key in ("fbp", "prior")}
    image, label, _, _ = PrepareDistillationPair()(data)
    assert not image.requires_grad and not label.requires_grad
    assert type(image) is torch.Tensor


def test_a_missing_item_is_named():
    with pytest.raises(ValueError, match="no 'prior'"):
        PrepareDistillationPair()({"fbp": torch.zeros(1, 1, 8, 8)})


def test_pairs_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="target must have the shape"):
        PrepareDistillationPair()({"fbp": torch.zeros(1, 1, 8, 8), "prior": torch.zeros(1, 1, 8, 16)})


def test_training_without_a_target_is_refused():
    with pytest.raises(ValueError, match="pass_target=False"):
        PrepareDistillationPair(pass_target=False)


def test_the_stock_trainer_and_evaluator_run_stage_two():
    torch.manual_seed(0)
    network = DistillationAutoencoder(channels=(4, 4, 4), latent_channels=2, skip_channels=(1, 1, 1))
    before = network.decoder.head.weight.clone()
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[dict(batch()) for _ in range(3)],
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 1e-3),
        loss_function=StructureLoss(),
        inferer=SimpleInferer(),
        prepare_batch=PrepareDistillationPair(),
    )
    trainer.run()
    assert not torch.equal(before, network.decoder.head.weight)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[dict(batch())],
        network=network,
        prepare_batch=PrepareDistillationPair(reference_key="reference"),
    )
    evaluator.run()
    assert evaluator.state.output[0]["pred"].shape == (1, 16, 16)
