"""Training of compact models: the loss falls, a seed fixes the weights, the random state is given back."""

import pytest
import torch

from attacks.errors import UserError
from benchmark import datasets, models
from benchmark.training import train


@pytest.fixture(scope="module")
def shapes() -> datasets.Dataset:
    return datasets.create("shapes", "train", size=40, input_size=32)


def fresh() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.create("compact_resnet", num_classes=8)


def trained(shapes, seed: int = 0, epochs: int = 2) -> tuple[torch.Tensor, list[float]]:
    model = fresh()
    losses = train(model, shapes, epochs=epochs, learning_rate=3e-3, batch_size=16, seed=seed)
    return torch.cat([value.double().flatten() for value in model.state_dict().values()]), losses


def test_the_loss_falls_epoch_by_epoch(shapes):
    _, losses = trained(shapes, epochs=12)
    assert len(losses) == 12
    assert losses[-1] < 0.6 * losses[0]


def test_a_seed_fixes_the_weights(shapes):
    first, again, other = trained(shapes, 3), trained(shapes, 3), trained(shapes, 4)
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert not torch.equal(first[0], other[0])


def test_the_state_of_the_world_does_not_matter_and_is_given_back(shapes):
    expected, _ = trained(shapes)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(trained(shapes)[0], expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_random_state_is_given_back_after_an_error(shapes):
    state = torch.get_rng_state()
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        train(fresh(), shapes, epochs=1, learning_rate=1e-3, batch_size=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_model_is_left_in_eval_mode_and_no_epoch_leaves_the_weights(shapes):
    model = fresh().train()
    assert train(model, shapes, epochs=0, learning_rate=1e-3, batch_size=16) == []
    assert not any(module.training for module in model.modules())
    assert torch.equal(model.conv1.weight, fresh().conv1.weight)


def test_every_epoch_has_an_order_of_its_own(shapes):
    class Recorder(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def __len__(self) -> int:
            return len(shapes)

        def __getitem__(self, index: int):
            self.seen.append(index)
            return shapes[index]

    recorder = Recorder()
    train(fresh(), recorder, epochs=2, learning_rate=1e-3, batch_size=16)
    first, second = recorder.seen[:40], recorder.seen[40:]
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
