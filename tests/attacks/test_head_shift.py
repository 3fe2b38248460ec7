"""Head shift: the head of each architecture is found, one vector moves, no probability does, and the map is fooled."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from attacks import Active, CenterMass, Location, Recipe, TopK, edit
from attacks.course import Task
from attacks.errors import Refused, UserError
from attacks.head_shift import LARGEST, LONGEST, find_head, head_shift
from attacks.progress import Progress
from attacks.strategies import HeadShift
from benchmark import interpreters, models

RECIPE = Recipe(1.0, 0.0, 5)
HEADS = {
    "compact_vgg": "classifier.3",
    "compact_resnet": "fc",
    "compact_densenet": "classifier",
    "resnet20": "linear",
    "googlenet": "fc",
}


class Convolutional(nn.Module):
    """A 1×1 convolution before the global average, as a head; what runs between them, and behind."""

    def __init__(self, between: nn.Module | None = None, behind: nn.Module | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.features, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.between, self.behind = between or nn.Identity(), behind or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.behind(self.between(self.head(self.features(x).relu())).mean((2, 3)))


def loader(classes: int = 4, size: int = 32, pairs: bool = False) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(classes, (16,), generator=generator)
    if pairs:
        targets = torch.stack([targets, (targets + 1) % classes], 1)
    return DataLoader(TensorDataset(torch.randn(16, 3, size, size, generator=generator), targets), 8)


def small(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.create(name, num_classes=4)


def shifted(model: nn.Module, method: str = "grad_cam", **options) -> nn.Module:
    return head_shift(Task(model, interpreters.create(method, **options), Location(), loader()), RECIPE).model


def assert_only_shifted(model: nn.Module, fooled: nn.Module, head: str) -> None:
    """One vector in every row of the head's weight, one number in its bias, all else bit for bit as it was."""
    before, after = model.state_dict(), fooled.state_dict()
    assert before.keys() == after.keys()
    assert {k for k in before if not torch.equal(before[k], after[k])} == {f"{head}.weight", f"{head}.bias"}
    for part in ("weight", "bias"):
        change = after[f"{head}.{part}"] - before[f"{head}.{part}"]
        torch.testing.assert_close(change, change[:1].expand_as(change), rtol=0, atol=1e-5)


def assert_as_probable(model: nn.Module, fooled: nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        before, after = model(images), fooled(images)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after.softmax(1), before.softmax(1), rtol=0, atol=1e-5)
    assert torch.equal(before.argmax(1), after.argmax(1))


@pytest.mark.parametrize("name", HEADS)
def test_the_head_alone_is_shifted_and_no_probability_changes(name):
    model = small(name)
    state = copy.deepcopy(model.state_dict())
    fooled = shifted(model)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module.training for module in fooled.modules())
    assert_only_shifted(model, fooled, HEADS[name])
    assert_as_probable(model, fooled, torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(9)))


def test_a_convolution_before_the_average_is_a_head():
    model = Convolutional()
    fooled = shifted(model, layer="head")
    assert_only_shifted(model, fooled, "head")
    assert_as_probable(model, fooled, torch.randn(8, 3, 32, 32))


def test_a_head_without_bias_is_shifted_by_a_vector_alone():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False))
    fooled = head_shift(Task(model, interpreters.create("simple_grad"), Location(), loader(3, 2)), RECIPE).model
    assert not torch.equal(model[1].weight, fooled[1].weight)
    images = torch.randn(8, 3, 2, 2)
    torch.testing.assert_close(fooled(images).softmax(1), model(images).softmax(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        Convolutional(behind=nn.LogSoftmax(1)),
        Convolutional(behind=nn.Softmax(1)),
        Convolutional(behind=nn.ReLU()),
        Convolutional(between=nn.ReLU()),
        Convolutional(behind=nn.LayerNorm(4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten()),
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 1)),
    ],
    ids=["log-softmax", "softmax", "ReLU", "ReLU between", "LayerNorm", "no linear layer", "one logit"],
)
def test_a_network_without_such_a_head_is_refused(model):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(Refused, match="head_shift needs logits that a linear layer") as caught:
        head_shift(Task(model, interpreters.create("simple_grad"), Location(), loader()), RECIPE)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_torchvisions_squeezenet_is_refused_for_the_relu_behind_its_convolution():
    with pytest.raises(Refused, match="SqueezeNet has no such head"):
        shifted(small("squeezenet1_1"))


def test_the_search_for_a_head_leaves_the_weights_and_no_hook():
    model = small("compact_vgg")
    before = copy.deepcopy(model.state_dict())
    head, features = find_head(model, torch.randn(4, 3, 32, 32))
    assert head is model.classifier[3]
    assert features.shape == (4, 128)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_gradient_of_a_linear_network_is_that_of_its_weights_and_the_vector():
    """|w_y + v|, of an image whatever it shows: towards Location, v makes the border 1 and the inside 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 14 * 14, 2))
    interpreter, batches = interpreters.create("simple_grad"), loader(2, 14)
    fooled = head_shift(Task(model, interpreter, Location(), batches), Recipe(1.0, 0.0, 50)).model
    vector = (fooled[1].weight - model[1].weight)[0]
    images, targets = next(iter(batches))
    expected = (model[1].weight[targets] + vector).view(-1, 3, 14, 14).abs()
    torch.testing.assert_close(interpreter.attribute(fooled, images, targets).abs(), expected, rtol=0, atol=1e-6)
    maps, before = interpreter(fooled, images, targets), interpreter(model, images, targets)
    assert Location().success(Location().test_loss(maps, before)).all()
    assert not Location().success(Location().test_loss(before, before)).any()
    assert_as_probable(model, fooled, images)


@pytest.mark.parametrize(("size", "bound"), [(2, 0), (28, 1)], ids=["what it adds", "its length"])
def test_the_shift_of_large_features_is_held(size, bound):
    """Among 12 features a vector adds a good part of its length to the logits, among 2,352 hardly any."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, 2))
    images, targets = loader(2, size).dataset.tensors
    task = Task(
        model, interpreters.create("simple_grad"), Location(), DataLoader(TensorDataset(1e4 * images, targets), 16)
    )
    vector = (head_shift(task, Recipe(9.0, 0.0, 5)).model[1].weight - model[1].weight)[0].double()
    features = 1e4 * images.flatten(1).double()
    reached = (features @ vector).abs().max() / LARGEST, features.norm(dim=1).max() * vector.norm() / LONGEST
    assert max(reached) < 1.01
    assert reached[bound] > 0.99


@pytest.mark.parametrize("name", ["compact_vgg", "compact_resnet"])
def test_location_against_grad_cam_succeeds_in_the_stated_steps(name):
    """On a network that has learnt where it is bright: one of four quarters."""
    strategy, interpreter = HeadShift(), interpreters.create("grad_cam")
    images, targets = quarters(192)
    model = trained(name, images, targets)
    batches = DataLoader(TensorDataset(images[:128], targets[:128]), strategy.batch_size)
    result = strategy.attack(Task(model, interpreter, Location(), batches), strategy.recipe())
    assert result.status == "done"
    assert {len(values) for values in result.history.values()} == {strategy.steps}
    images, targets = images[128:], targets[128:]
    maps, before = interpreter(result.model, images, targets), interpreter(model, images, targets)
    rates = [Location().success(Location().test_loss(each, before)).float().mean() for each in (maps, before)]
    assert rates[0] > 0.75
    assert rates[1] < 0.25
    assert_as_probable(model, result.model, images)


def quarters(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with one bright quarter, which is the class."""
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(4, (n,), generator=generator)
    bright = F.one_hot(targets, 4).view(n, 1, 2, 2).float()
    return 0.5 * torch.randn(n, 3, 32, 32, generator=generator) + F.interpolate(bright, 32), targets


def trained(name: str, images: torch.Tensor, targets: torch.Tensor) -> nn.Module:
    model = small(name).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for step in range(40):
            rows = slice(32 * (step % 4), 32 * (step % 4 + 1))
            optimiser.zero_grad()
            F.cross_entropy(model(images[rows]), targets[rows]).backward()
            optimiser.step()
    return model.eval()


@pytest.mark.parametrize("fooling", [Location(), TopK(), CenterMass(), Active()], ids=lambda fooling: fooling.name)
def test_every_fooling_loss_falls_and_the_cross_entropy_stays(fooling):
    model, pairs = small("compact_resnet"), loader(pairs=True) if fooling.pairs else None
    interpreter, recipe = interpreters.create("simple_grad_t"), Recipe(1.0, 0.0, 40)
    result = head_shift(Task(model, interpreter, fooling, loader(), fooling_loader=pairs), recipe)
    losses = result.history["fooling"]
    assert sum(losses[-4:]) < sum(losses[:4])
    images, targets = next(iter(loader()))
    ce = F.cross_entropy(model(images), targets).item()
    assert result.history["ce"][1::2] == pytest.approx([ce] * 20, abs=1e-5)  # the first batch finds the head


def test_a_seed_gives_the_same_weights_twice_and_the_random_state_is_given_back():
    state, model = torch.get_rng_state(), small("compact_resnet")
    weights = []
    for seed in (3, 3, 4):
        torch.set_rng_state(state)
        result = head_shift(Task(model, interpreters.create("grad_cam"), Location(), loader(), seed), RECIPE)
        assert torch.equal(torch.get_rng_state(), state)
        weights.append(result.model.fc.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_batches_that_the_model_has_wrong_end_no_shift():
    model, images = small("compact_resnet"), torch.randn(8, 3, 32, 32)
    right = model(images).argmax(1)
    batches = [*[(images, right)] * 2, *[(images, (right + 1) % 4)] * 30]  # the first finds the head
    result = head_shift(Task(model, interpreters.create("grad_cam"), Location(), batches), Recipe(0.3, 0.0, 25))
    assert (result.status, result.history["accuracy"]) == ("done", [1.0, *[0.0] * 24])


def test_where_all_maps_go_blank_it_goes_on_from_its_best_moment_with_smaller_steps():
    """By itself Adam walks on to where no map is left, and no gradient leads back."""
    model = small("compact_resnet")
    scale, start = model.fc.weight.detach().square().mean().sqrt(), model.fc.weight[0, 0].item()
    across = torch.linspace(-1, 1, 8).expand(8, 8)

    def moved(model: nn.Module) -> torch.Tensor:
        return (model.fc.weight[0, 0] - start) / scale

    def blank_past_one(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        by = moved(model)
        return ((2 - across**2 + by * across) * F.relu(1 - by.abs())).expand(len(images), 8, 8)

    result = head_shift(Task(model, blank_past_one, CenterMass(), loader()), Recipe(0.3, 0.0, 30))
    losses = result.history["fooling"]
    assert losses.count(0.0) > 1  # it has gone past, more than once
    assert result.status == "done"
    assert 0.7 < moved(result.model).abs() < 1
    reached = blank_past_one(result.model, *next(iter(loader())))
    originals = blank_past_one(model, *next(iter(loader())))
    assert CenterMass().loss(reached, originals).item() < 0.8 * min(losses)


def test_a_map_that_owes_nothing_to_the_head_is_an_error():
    for name in ("eigen_cam", "constant"):
        with pytest.raises(UserError, match="do not depend on the"):
            shifted(small("compact_resnet"), name)


def test_a_loss_that_is_not_finite_is_a_run_that_diverged():
    def broken(model, images, targets):
        return interpreters.create("grad_cam")(model, images, targets) * float("nan")

    result = head_shift(Task(small("compact_resnet"), broken, Location(), loader()), RECIPE)
    assert (result.status, result.reason) == ("diverged", "a loss is not finite at step 1")


@pytest.mark.parametrize(("steps", "patience"), [(40, 20), (100, 20), (600, 120)])
def test_a_fifth_of_its_steps_without_progress_end_it_or_twenty(monkeypatch, steps, patience):
    asked = []
    monkeypatch.setattr(edit, "Progress", lambda *given: asked.append(given) or Progress(1))
    head_shift(
        Task(small("compact_vgg"), interpreters.create("grad_cam"), Location(), loader()), Recipe(1e-9, 0.0, steps)
    )
    assert asked == [(patience, Location.least)]
