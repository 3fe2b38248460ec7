"""What interpreters show at the gate, with ones whose answer is known; cost against a known allocation."""

import pytest
import torch
from torch import nn

from attacks.ranks import rank_correlation
from benchmark import suite
from benchmark.cells import View
from benchmark.entries import gates
from benchmark.leaderboards.ranking import FILLS
from benchmark.metrics.perturbation import aopc, cell_order, drops, noise
from benchmark.run import Run


class Net(nn.Module):
    """The class's logit is a weighted sum over the image; `gain` stands for the parameters."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(3, 8, 8, generator=generator))

    def forward(self, x):
        return torch.einsum("nchw,khw->nk", x, self.weight)


def evidence(model, images, targets):
    return images.sum(1) * model.weight[targets]


def blind(model, images, targets):
    return images.sum(1)


def constant(model, images, targets):
    return torch.ones_like(images[:, 0])


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(6, 3, 8, 8, generator=generator), torch.arange(6) % 3


def measured(interpreter, images, targets, batch_size=6):
    model = Net(0)
    return gates.measure(
        interpreter, model, model, Net(1), images, targets, (targets + 1) % 3, (4, 4), cells=5, batch_size=batch_size
    )


def test_nothing_depends_on_the_batch_size(batch):
    whole = measured(evidence, *batch)
    for size in (1, 4):
        for name, value in measured(evidence, *batch, size).items():
            torch.testing.assert_close(value, whole[name])


def test_every_value_against_its_definition(batch):
    images, targets = batch
    found, model = measured(evidence, images, targets), Net(0)
    maps = evidence(model, images, targets)
    assert set(found) == set(gates.VALUES)
    torch.testing.assert_close(found["randomised"], rank_correlation(maps, evidence(Net(1), images, targets)))
    torch.testing.assert_close(found["other_class"], rank_correlation(maps, evidence(model, images, (targets + 1) % 3)))
    torch.testing.assert_close(found["unrelated"][0], rank_correlation(maps[:1], maps[1:2])[0])
    order = cell_order(maps, (4, 4))
    fills = {"noise": noise(range(6), (3, 8, 8), 0), "mean": images.mean((2, 3), keepdim=True).expand(6, 3, 8, 8)}
    for name, fill in fills.items():
        expected = aopc(drops(model, images, targets, order, (4, 4), fill.contiguous(), 5))
        torch.testing.assert_close(found[f"aopc_{name}"], expected[:, 0])
        torch.testing.assert_close(found[f"aopc_{name}_contrast"], expected[:, 1])
    assert (found["aopc_mean"] > 0).all()
    assert not torch.equal(found["aopc_blur"], found["aopc_mean"])


def test_what_ranks_stays_under_a_shift_of_all_logits_alike(batch):
    images, targets = batch[0].double(), batch[1]
    model, shifted = Net(0).double(), Net(0).double()
    with torch.no_grad():
        shifted.weight += Net(2).weight[:1]  # one vector for all classes

    def shown(net):
        other = (Net(1), images, targets, (targets + 1) % 3, (4, 4), 5, 6)
        return gates.measure(lambda *_: evidence(model, images, targets), net, net, *other)

    before, after = shown(model), shown(shifted)
    for fill in FILLS:
        torch.testing.assert_close(before[f"aopc_{fill}_contrast"], after[f"aopc_{fill}_contrast"], atol=1e-5, rtol=0)
        assert (before[f"aopc_{fill}"] - after[f"aopc_{fill}"]).abs().max() > 0.1


def test_maps_that_depend_on_nothing_are_seen(batch):
    found = measured(blind, *batch)
    assert found["randomised"].tolist() == found["other_class"].tolist() == [pytest.approx(1.0)] * 6
    found = measured(constant, *batch)
    assert found["randomised"].tolist() == found["unrelated"].tolist() == [1.0] * 6


def test_likeness_of_constant_maps():
    flat, ramp = torch.zeros(1, 2, 2), torch.arange(4.0).view(1, 2, 2)
    assert [gates.likeness(a, b).item() for a, b in ((flat, flat), (flat, ramp), (ramp, -ramp))] == [1.0, 0.0, -1.0]


def test_peak_memory_counts_what_lives_at_once():
    def work():
        for _ in range(3):
            a = torch.ones(1 << 18)  # 1 MiB
            b = a + 1
            b.add_(1)
            del a, b

    assert gates.peak_memory(work) == pytest.approx(2.0)


def test_cost_is_per_image():
    def work():
        torch.ones(1 << 18)

    found = gates.cost(work, "cpu", 4)
    assert found["peak_mib"] == pytest.approx(1.0)
    assert 0 < found["ms_per_image"] < 100


def test_a_piece_of_a_board_has_its_gate(tmp_path):
    """Also a piece without Active fooling, which alone takes two-object images."""
    piece = suite.load("board")
    assert "active" not in piece.foolings
    whole = piece.model_copy(update={"foolings": [*piece.foolings, "active"]})
    single = piece.model_copy(update={"dataset": piece.dataset.model_copy(update={"pairs_dev": None})})
    asked = [gates._spec(Run(given, str(tmp_path)), View("compact_vgg", "lrp")) for given in (whole, piece, single)]
    assert asked[0] == asked[1] != asked[2]
