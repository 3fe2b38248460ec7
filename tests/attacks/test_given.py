"""What every public attack takes, and how it gives a model back."""

import functools

import pytest
import torch
from small_models import Net
from torch import nn
from torch.nn.utils import prune

from attacks import (
    Active,
    CenterMass,
    Recipe,
    bounded,
    carlini_wagner,
    elastic_net,
    fgsm,
    manipulate,
    minimum_norm,
    pgd,
    structured_attack,
)
from attacks.course import Task
from attacks.errors import UserError
from attacks.head_shift import head_shift

ON_IMAGES = {
    "fgsm": functools.partial(fgsm, epsilon=0.1),
    "pgd": functools.partial(pgd, epsilon=0.1, step=0.05, steps=2),
    "carlini_wagner": functools.partial(carlini_wagner, steps=1),
    "elastic_net": functools.partial(elastic_net, steps=1),
    "minimum_norm": lambda *given, **more: minimum_norm(*given, steps=3, **more).delta,
    "bounded": functools.partial(bounded, rho=0.1, steps=2, path=0.1),
    "structured": functools.partial(structured_attack, cell=2, steps=2, gamma=1, tau=2, c=30, rho=1, epsilon=1),
}
each_attack = pytest.mark.parametrize("name", ON_IMAGES)


class Counting(nn.Module):
    """A network whose buffers change with every pass, in training mode and in eval mode."""

    def __init__(self):
        super().__init__()
        self.net = Net()
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))
        self.register_buffer("last", torch.zeros(6, 6, dtype=torch.double))

    def forward(self, x):
        self.passes += 1
        self.last = x.detach().mean((0, 1))
        return self.net(x)


def buffers(model):
    return {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}


def assert_kept(model, before):
    for name, buffer in model.named_buffers():
        assert buffer is before[name][0]
        assert torch.equal(buffer, before[name][1]), name


def loose(model, how):
    """The model in a callable that is no module."""
    return {
        "module": model,
        "method": model.forward,
        "partial": functools.partial(model),
        "function": lambda x: model(x),
    }[how]


@each_attack
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("how", ["module", "method", "partial", "function"])
def test_an_attack_changes_no_buffer(name, training, how, setting):
    model, (_, images, targets) = Counting().train(training), setting
    before, modes = buffers(model), [module.training for module in model.modules()]
    ON_IMAGES[name](loose(model, how), images, targets)
    assert_kept(model, before)
    assert [module.training for module in model.modules()] == modes


@each_attack
def test_nor_does_one_that_fails(name, setting):
    class Failing(Counting):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("failed")

    model = Failing().train()
    before = buffers(model)
    with pytest.raises(RuntimeError, match="failed"):
        ON_IMAGES[name](model, *setting[1:])
    assert_kept(model, before)


class Centring(nn.Module):
    """A network that shifts and scales its images, in place or as one writes it."""

    def __init__(self, net, in_place):
        super().__init__()
        self.net, self.in_place = net, in_place

    def forward(self, x):
        return self.net(x.sub_(0.25).mul_(2) if self.in_place else (x - 0.25) * 2)


@each_attack
def test_a_model_may_write_into_its_images(name, setting):
    network, images, targets = setting
    given = images.clone()
    got, expected = (ON_IMAGES[name](Centring(network, how), given, targets) for how in (True, False))
    torch.testing.assert_close(got, expected)
    assert torch.equal(given, images)


def gradient(model, images, targets):
    """SimpleGrad's map, by hand."""
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        label = model(images).gather(1, targets[:, None]).sum()
        maps = torch.autograd.grad(label, images, create_graph=torch.is_grad_enabled())[0]
    return maps.abs().sum(1)


def shifted(*task, recipe):
    """`head_shift`, with the arguments of `manipulate`."""
    return head_shift(Task(*task), recipe)


each_manipulation = pytest.mark.parametrize("attack", [manipulate, shifted])


@each_manipulation
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_nor_does_a_manipulation(attack, training, setting):
    model, (_, images, targets) = Counting().train(training), setting
    before = buffers(model)
    attack(model, gradient, CenterMass(), [(images, targets)], recipe=Recipe(1e-3, 1.0, 2))
    assert_kept(model, before)
    assert model.training == training


@each_attack
def test_targets_in_any_form_give_the_same(name, setting):
    model, images, _ = setting
    expected = ON_IMAGES[name](model, images, torch.full((5,), 2))
    for targets in (2, [2] * 5, (2,) * 5, torch.full((5,), 2, dtype=torch.int32)):
        assert torch.equal(ON_IMAGES[name](model, images, targets), expected)


FORMS = {"tuple": lambda z: (z, z[:, 0]), "dictionary": lambda z: {"logits": z, "features": z.detach()}}


@each_attack
@pytest.mark.parametrize("form", FORMS)
def test_logits_are_found_in_what_a_model_gives(name, form, setting):
    model, images, targets = setting
    expected = ON_IMAGES[name](model, images, targets)
    assert torch.equal(ON_IMAGES[name](lambda x: FORMS[form](model(x)), images, targets), expected)
    with pytest.raises(UserError, match="tuple with 2 of them"):
        ON_IMAGES[name](lambda x: (model(x), model(x)), images, targets)


@each_attack
def test_an_attack_runs_in_inference_mode(name, setting):
    model, images, targets = setting
    expected = ON_IMAGES[name](model, images, targets)
    with torch.inference_mode():
        got = ON_IMAGES[name](model, images.clone(), targets.clone())
        foreign = Net()
        with pytest.raises(UserError, match=r"made in torch\.inference_mode"):
            ON_IMAGES[name](foreign, images, targets)
    assert torch.equal(got, expected)


@each_attack
@pytest.mark.parametrize(("images", "message"), [
    (torch.ones(5, 3, 6, 6, dtype=torch.uint8), "floating point, .*got uint8"),
    (torch.full((5, 3, 6, 6), torch.nan, dtype=torch.double), "must be finite|got nan"),
    (torch.ones(5, 3, 6, 6, device="meta"), "must have values"),
    (torch.ones(3, 6, 6), r"must be \(N, C, H, W\)"),
    ([[0.0]], "must be a tensor"),
], ids=["bytes", "NaN", "elsewhere", "one image", "list"])  # fmt: skip
def test_images_that_cannot_be_attacked_are_one_clear_line(name, images, message, setting):
    with pytest.raises(UserError, match=message) as caught:
        ON_IMAGES[name](setting[0], images, setting[2])
    assert "\n" not in str(caught.value)


@each_attack
def test_images_of_another_type_are_one_clear_line(name, setting):
    with pytest.raises(UserError, match=r"of the model's type, float64 .got float32"):
        ON_IMAGES[name](setting[0], setting[1].float(), setting[2])


@each_attack
def test_no_images_give_none(name, setting):
    model, images, targets = setting
    assert ON_IMAGES[name](model, images[:0], targets[:0]).shape == (0, 3, 6, 6)
    with pytest.raises(UserError, match="on the model's device, meta"):
        ON_IMAGES[name](nn.Linear(2, 2).to("meta"), images, targets)


BATCHES = {
    "three values": (lambda x, y: (x, y, y), r"must yield \(images, targets\) .got 3 values"),
    "a dictionary": (lambda x, y: {"image": x, "label": y}, r"must yield \(images, targets\) .got dict"),
    "no images": (lambda x, y: (x[:0], y[:0]), "at least one image"),
    "bytes": (lambda x, y: (x.byte(), y), "got uint8"),
    "NaN": (lambda x, y: (x * torch.nan, y), "must be finite"),
    "a column": (lambda x, y: (x, y[:, None]), "must be one class index or .5,. class indices .got .5, 1"),
    "one-hot": (lambda x, y: (x, nn.functional.one_hot(y, 3)), "class indices .got .5, 3"),
    "soft labels": (lambda x, y: (x, y.double()), "must be class indices .got a tensor of float64"),
    "booleans": (lambda x, y: (x, y > 0), "must be class indices .got a tensor of bool"),
    "too few": (lambda x, y: (x, y[:2]), "class indices .got .2,"),
}


@each_manipulation
@pytest.mark.parametrize("form", BATCHES)
def test_a_loader_of_other_things_is_one_clear_line(attack, form, setting):
    model, images, targets = setting
    function, message = BATCHES[form]
    with pytest.raises(UserError, match=message):
        attack(model, gradient, CenterMass(), [function(images, targets)], recipe=Recipe(1e-3, 1.0, 1))


class Unique(Net):
    def __deepcopy__(self, memo):
        raise KeyError("there is one")


UNTRAINABLE = {
    "function": (lambda x: x, "must be a torch.nn.Module, not scripted .got function"),
    "traced": (torch.jit.trace(Net(), torch.zeros(1, 3, 6, 6).double()), "not scripted .got scripted or traced"),
    "no weights": (nn.Flatten(), "must have parameters .Flatten has none"),
    "lazy": (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "no weights at '1.weight' yet"),
    "unique": (Unique().double(), "a copy of the model must be possible: 'there is one'"),
    "a list of activations": (lambda: None, "a copy of the model must be possible"),
}


@each_manipulation
@pytest.mark.parametrize("case", UNTRAINABLE)
def test_a_model_that_cannot_be_fine_tuned_is_one_clear_line(attack, case, setting):
    model, message = UNTRAINABLE[case]
    if case == "a list of activations":
        model, images, _ = setting
        model.kept = [model(images)]
    with pytest.raises(UserError, match=message) as caught:
        attack(model, gradient, CenterMass(), [setting[1:]], recipe=Recipe(1e-3, 1.0, 1))
    assert "\n" not in str(caught.value)


def normed(model):
    torch.nn.utils.weight_norm(model.conv)


def pruned(model):
    prune.identity(model.conv, "weight")


def run(model):
    model.kept = model.conv(torch.ones(1, 3, 6, 6).double())


@each_manipulation
@pytest.mark.parametrize("divergence", [None, 0.1])
@pytest.mark.parametrize("change", [normed, pruned, run])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_hangs_on_a_graph_in_a_model_is_copied(attack, change, divergence, setting):
    model, images, targets = setting
    change(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    found = attack(
        model, gradient, CenterMass(), [(images, targets)], recipe=Recipe(1e-2, 1.0, 2, divergence=divergence)
    )
    assert found.status == "done"
    moved = [name for name, value in found.model.state_dict().items() if not torch.equal(value, weights[name])]
    assert moved
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("divergence", [None, 0.1])
def test_a_loader_gives_targets_as_attacks_take_them(divergence, setting):
    model, images, _ = setting
    recipe = Recipe(1e-3, 1.0, 2, divergence=divergence)
    expected = manipulate(model, gradient, CenterMass(), [(images, torch.full((5,), 2))], recipe)
    for targets in (2, [2] * 5, torch.full((5,), 2, dtype=torch.int32), torch.full((5,), 2, dtype=torch.uint8)):
        got = manipulate(model, gradient, CenterMass(), [(images, targets)], recipe)
        assert got.history == expected.history


def test_two_object_images_have_two_targets_each(setting):
    model, images, targets = setting
    two = torch.stack([targets, 2 - targets], 1)
    attack = functools.partial(manipulate, model, gradient, Active(), [(images, targets)], Recipe(1e-3, 1.0, 1))
    expected = attack(fooling_loader=[(images, two)])
    assert attack(fooling_loader=[(images, two.int())]).history == expected.history
    for wrong in (targets, two[:2], two.double(), torch.cat([two, two], 1)):
        with pytest.raises(UserError, match=r"of two-object images must be .5, 2.|must be class indices"):
            attack(fooling_loader=[(images, wrong)])


LOADERS = {
    "no loader": (lambda *batch: 3, "must be iterable, again and again .got int"),
    "nothing": (lambda *batch: [], "at least one batch .got none.$"),
    "generator": (lambda *batch: (b for b in [batch]), "got none in its second pass: a generator runs once"),
}


@each_manipulation
@pytest.mark.parametrize("case", LOADERS)
def test_a_loader_without_batches_is_one_clear_line(attack, case, setting):
    make, message = LOADERS[case]
    with pytest.raises(UserError, match=message):
        attack(setting[0], gradient, CenterMass(), make(*setting[1:]), recipe=Recipe(1e-3, 1.0, 3))


class Quiet(Net):
    """Its features have no gradient, its head has."""

    def forward(self, x):
        with torch.no_grad():
            features = self.norm(self.conv(x)).relu().flatten(1)
        return self.head(features)


@each_attack
@pytest.mark.parametrize("model", [Quiet(), torch.no_grad()(Net())], ids=["features", "whole"])
def test_logits_without_a_gradient_are_one_clear_line(name, model, setting):
    """Carlini and Wagner's and the elastic net's loss has one by the distance alone: nothing would be found."""
    with pytest.raises(UserError, match="logits must have a gradient by the images"):
        ON_IMAGES[name](model, *setting[1:])


def test_a_loader_may_give_lists_of_ints_and_a_model_tuples(setting):
    model, images, targets = setting
    run = functools.partial(manipulate, interpreter=gradient, fooling=CenterMass(), recipe=Recipe(1e-3, 1.0, 2))
    expected = run(model, loader=[(images, targets)])
    given = run(model, loader=[[images, targets.tolist()]])
    assert given.history == expected.history

    class Pair(Net):
        def forward(self, x):
            return {"logits": super().forward(x), "features": x}

    def by_name(model, images, targets):
        return gradient(lambda x: model(x)["logits"], images, targets)

    assert manipulate(Pair(), by_name, CenterMass(), [(images, targets)], recipe=Recipe(1e-3, 1.0, 2)).status == "done"
