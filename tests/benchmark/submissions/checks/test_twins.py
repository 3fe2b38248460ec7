"""A twin computes the model's function with other weights, and the model itself stays as it was."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from benchmark import interpreters, models
from benchmark.submissions import checks
from benchmark.submissions.checks.twins import TWINS, fold_batch_norm, permute_channels, rescale

each_twin = pytest.mark.parametrize("twin", TWINS)
REORDERING = [permute_channels, rescale]


def lively(model: nn.Module) -> nn.Module:
    """The model in eval mode, with BatchNorms that are no identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@each_twin
@pytest.mark.parametrize("name", models.COMPACT)
def test_a_twin_has_the_same_logits_and_other_weights(name: str, twin: str):
    model, images = lively(models.create(name, num_classes=6)), torch.randn(3, 3, 32, 32)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        model, images = model.to(dtype), images.to(dtype)
        other, expected = TWINS[twin](model), model(images)
        assert type(other) is type(model)
        assert (other(images) - expected).abs().max() <= tolerance * expected.abs().max()
        # at least one of the convolutions of every chain
        kernels = [[p for p in m.parameters() if p.dim() == 4] for m in (model, other)]
        differ = sum(not torch.equal(a, b) for a, b in zip(*kernels, strict=True))
        assert differ >= {"compact_vgg": 4, "compact_resnet": 5, "compact_densenet": 8}[name]


@each_twin
def test_the_given_model_is_untouched(twin: str):
    model = lively(models.create("compact_resnet", num_classes=3)).train()
    before, text = copy.deepcopy(model.state_dict()), repr(model)
    rng = torch.get_rng_state()
    other = TWINS[twin](model)
    assert other is not None
    assert not any(m.training for m in other.modules())
    assert all(m.training for m in model.modules())
    assert repr(model) == text
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not {id(p) for p in model.parameters()} & {id(p) for p in other.parameters()}
    assert torch.equal(torch.get_rng_state(), rng)


def test_the_seed_decides_the_order():
    model = models.create("compact_vgg", num_classes=3)
    first, again, third = (permute_channels(model, seed).features[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, third)


def test_channels_are_followed_through_a_flatten():
    """By hand: two 1 × 1 convolution channels on 1 × 2 pixels, read by a linear map of 4 inputs."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([10.0, 20.0]))
        model[3].weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    seed = next(s for s in range(9) if torch.randperm(2, generator=torch.Generator().manual_seed(s))[0] == 1)
    twin = permute_channels(model, seed)
    assert twin[0].weight.flatten().tolist() == [2, 1]
    assert twin[0].bias.tolist() == [20, 10]
    assert twin[3].weight.tolist() == [[3, 4, 1, 2]]


def test_folding_leaves_no_batch_norm_behind_a_convolution():
    assert not [m for m in fold_batch_norm(models.create("compact_vgg", num_classes=3)).modules() if _norm(m)]
    assert not [m for m in fold_batch_norm(models.create("compact_resnet", num_classes=3)).modules() if _norm(m)]
    left = [n for n, m in fold_batch_norm(models.create("compact_densenet", num_classes=3)).named_modules() if _norm(m)]
    assert all(name.endswith("norm1") or "transition" in name or name == "features.norm5" for name in left)


def _norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d)


class Net(nn.Module):
    """Convolution, some way in between, convolution, mean over pixels."""

    def __init__(self, between: nn.Module, reader: nn.Module | None = None) -> None:
        super().__init__()
        self.writer, self.between = nn.Conv2d(3, 8, 1), between
        self.reader = reader or nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(self.between(self.writer(x))).flatten(2).mean(2)


class Residual(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(x)


class Flipped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1)


class Tied(Net):
    """Its writer's weights are used a second time."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.conv2d(x, self.writer.weight).mean()


class Branching(Net):
    """Control flow on the data: cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def reused() -> Net:
    layer = nn.Conv2d(8, 8, 1)
    return Net(nn.Sequential(layer, nn.ReLU(), layer))


BROKEN = {
    "residual sum": lambda: Net(Residual()),
    "channels reordered": lambda: Net(Flipped()),
    "softmax": lambda: Net(nn.Softmax(1)),
    "group norm": lambda: Net(nn.GroupNorm(2, 8)),
    "grouped reader": lambda: Net(nn.ReLU(), nn.Conv2d(8, 4, 1, groups=2)),
    "weights used twice": lambda: Tied(nn.ReLU()),
    "control flow": lambda: Branching(nn.ReLU()),
    "computed weights": lambda: Net(nn.ReLU(), weight_norm(nn.Conv2d(8, 4, 1))),
    "linear over columns": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Linear(16, 4), nn.Flatten()),
    "linear over tokens": lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Flatten(), nn.Linear(384, 4)),
    "pooled features": lambda: nn.Sequential(nn.Linear(16, 8), nn.MaxPool2d(2), nn.Linear(4, 4), nn.Flatten()),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("twin", REORDERING)
def test_what_is_no_chain_is_not_rewritten(twin, case: str):
    assert twin(BROKEN[case]().eval()) is None


def test_a_reused_module_ends_every_chain():
    for twin in REORDERING:
        assert twin(reused()) is None


@pytest.mark.parametrize("between", [nn.ReLU6(), nn.Sigmoid(), nn.ELU()], ids=str)
def test_what_is_not_homogeneous_is_not_rescaled(between: nn.Module):
    assert rescale(Net(between)) is None


@pytest.mark.parametrize("twin", REORDERING)
def test_functional_calls_are_followed(twin):
    class Functional(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = F.adaptive_avg_pool2d(F.relu(self.between(self.writer(x)), inplace=True), (2, 2))
            return self.reader(torch.flatten(x, 1))

    model = lively(Functional(nn.BatchNorm2d(8), nn.Linear(32, 4))).double()
    other, images = twin(model), torch.randn(2, 3, 8, 8, dtype=torch.double)
    assert other is not None
    assert not torch.equal(other.reader.weight, model.reader.weight)
    torch.testing.assert_close(other(images), model(images), rtol=1e-9, atol=1e-9)


def test_a_model_without_batch_norm_has_none_to_fold():
    assert fold_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))) is None


def test_a_convolution_that_two_read_is_not_folded():
    class Two(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.writer(x)
            return self.reader(self.between(x) + x).flatten(2).mean(2)

    assert fold_batch_norm(Two(nn.BatchNorm2d(8))) is None


def test_how_a_model_is_written_down_is_a_warning(resnet):
    def warned(**options) -> dict[str, str]:
        found = checks.run(interpreters.create("lrp_t_contrast", **options), differentiable=False, stochastic=False)
        bad = [finding for finding in found if not finding.ok]
        assert {finding.severity for finding in bad} <= {"warning"}
        return {finding.check: finding.message for finding in bad}

    (message,) = warned(batch_norm="pass").values()
    assert "folded BatchNorm has other maps (images 0, 1, 2, 3 of 4): merging" in message
    assert warned(batch_norm="fold") == {}
