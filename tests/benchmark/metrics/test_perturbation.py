"""AOPC on models whose logits are known: every drop is then known in closed form."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from attacks.errors import UserError
from benchmark.metrics.perturbation import aopc, cell_order, drops, folded, noise, random_order

# image side, grid: pixel grids, those of the real networks, and some that do not divide
GRIDS = [
    ((64, 64), (8, 8)),
    ((224, 224), (7, 7)),
    ((30, 31), (7, 7)),
    ((10, 23), (4, 3)),
    ((5, 5), (5, 5)),
    ((9, 9), (1, 1)),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(size: tuple[int, int], classes: int = 3) -> nn.Module:
    """logits = W x, so that each replaced pixel moves them by its own term."""
    layer = nn.Linear(3 * size[0] * size[1], classes, bias=False, dtype=torch.float64)
    layer.weight = nn.Parameter(normal(*layer.weight.shape, seed=9))
    return nn.Sequential(nn.Flatten(), layer)


def cell_slices(size: tuple[int, int], grid: tuple[int, int]) -> list[tuple[slice, slice]]:
    """The cells' rows and columns, boundaries rounded half up."""
    bounds = [[int(i * side / parts + 0.5) for i in range(parts + 1)] for side, parts in zip(size, grid, strict=True)]
    rows, columns = [[slice(*pair) for pair in pairwise(b)] for b in bounds]
    return [(row, column) for row in rows for column in columns]


@pytest.mark.parametrize(("size", "grid"), GRIDS, ids=str)
def test_drops_of_a_linear_model_are_known(size: tuple[int, int], grid: tuple[int, int]) -> None:
    cells, model = grid[0] * grid[1], linear(size)
    images, fill, targets = normal(2, 3, *size), normal(2, 3, *size, seed=1), torch.tensor([2, 0])
    order = random_order([5, 6], cells, seed=0)
    both = drops(model, images, targets, order, grid, fill, steps=12)
    assert both.shape == (2, 2, min(12, cells))
    found, contrast = both.unbind(1)
    slices = cell_slices(size, grid)
    for n in range(2):
        weights = model[1].weight.detach()
        for got, row in ((found, weights[targets[n]]), (contrast, weights[targets[n]] - weights.mean(0))):
            terms = row.view(3, *size) * (images[n] - fill[n])
            expected = torch.stack([terms[:, *slices[c]].sum() for c in order[n, : found.shape[1]]]).cumsum(0)
            assert torch.allclose(got[n], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("size", "grid"), [((40, 40), (12, 12)), ((10, 23), (4, 3))], ids=str)
def test_steps_end_at_a_hundred_or_at_the_last_cell(size: tuple[int, int], grid: tuple[int, int]) -> None:
    images, fill, cells = normal(1, 3, *size), normal(1, 3, *size, seed=1), grid[0] * grid[1]
    model, order = linear(size), random_order([0], cells, seed=1)
    found = drops(model, images, torch.tensor([1]), order, grid, fill, steps=10**6)[:, 0]
    assert found.shape == (1, min(100, cells))
    if cells < 100:  # everything is replaced
        assert torch.allclose(found[:, -1], (model(images) - model(fill))[:, 1])


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(), nn.Conv2d(8, 8, 3)),
        *(nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


def test_a_batch_is_its_images_one_by_one_whatever_their_memory_format() -> None:
    model, ids, targets = small_net().double(), [7, 3, 3, 0, 9], torch.tensor([0, 1, 2, 3, 0])
    images = normal(5, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    before = images.clone()

    def score(which: slice) -> Tensor:
        fill = noise(ids[which], (3, 16, 16), seed=4, dtype=torch.float64)
        order = random_order(ids[which], 16, seed=4)
        return drops(model, images[which], targets[which], order, (4, 4), fill, steps=5)

    together = score(slice(None))
    assert torch.allclose(together, torch.cat([score(slice(i, i + 1)) for i in range(5)]), rtol=1e-10, atol=1e-12)
    assert torch.equal(images, before)
    assert not together.requires_grad


def test_the_model_is_borrowed_in_eval_mode_and_returned_in_its_own() -> None:
    model = small_net().train()
    model[1].eval()  # frozen BatchNorm, as while fine-tuning
    modes, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    images, fill, order = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16), random_order([0, 1], 16, 0)
    first, again = (drops(model, images, torch.tensor([0, 1]), order, (4, 4), fill, steps=3) for _ in range(2))
    assert torch.equal(first, again)  # no dropout
    with pytest.raises(RuntimeError):
        drops(model, images[:, :2], torch.tensor([0, 1]), order, (4, 4), fill[:, :2], steps=3)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_arguments_that_do_not_fit_are_named() -> None:
    images, order, target = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, dtype=torch.long), torch.tensor([0])
    for message, change in {
        "steps must be at least 1": {"steps": 0},
        "noise must have the images' shape": {"noise": images[:, :, :3]},
        r"order must be \(N, 9\)": {"grid": (3, 3)},
        "is finer than the image": {"grid": (5, 1), "order": torch.zeros(1, 5, dtype=torch.long)},
    }.items():
        arguments = {"order": order, "grid": (2, 2), "noise": images, "steps": 1} | change
        with pytest.raises(UserError, match=message):
            drops(nn.Flatten(), images, target, **arguments)


def test_a_shift_of_the_head_moves_the_logits_drops_and_not_the_contrasts() -> None:
    """W + 1vᵀ: no probability changes, and v is as large as a class's own weights."""
    model, targets = small_net().eval(), torch.tensor([2, 0, 1])
    images, order = torch.rand(3, 3, 16, 16), random_order(range(3), 16, 0)
    fill = noise(range(3), (3, 16, 16), 0, scale=3.0)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[-1].weight += torch.randn(8) * model[-1].weight.norm(dim=1).mean()
        twin[-1].bias += 3.0
    assert torch.allclose(model(images).softmax(1), twin(images).softmax(1), atol=1e-6)
    plain, shifted = (drops(each, images, targets, order, (4, 4), fill, 6) for each in (model, twin))
    assert (plain[:, 1] - shifted[:, 1]).abs().max() < 1e-5
    assert (plain[:, 0] - shifted[:, 0]).abs().amax(1).min() > 1e-2


def test_aopc_divides_by_the_steps_and_the_start() -> None:
    assert aopc(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, -4.0]])).tolist() == [1.5, -1.0]


def test_cells_are_ordered_from_the_highest_ties_by_position() -> None:
    maps = torch.tensor([[[1.0, 4.0], [2.0, 3.0]], [[0.0, 1.0], [1.0, 0.0]], [[5.0, 5.0], [5.0, 5.0]]])
    assert cell_order(maps, (2, 2)).tolist() == [[1, 3, 2, 0], [1, 2, 0, 3], [0, 1, 2, 3]]


def test_a_pixel_map_is_averaged_over_the_cells() -> None:
    maps = normal(3, 64, 64)
    means = maps.view(3, 8, 8, 8, 8).mean((2, 4)).flatten(1)
    assert torch.equal(cell_order(maps, (8, 8)), means.argsort(dim=1, descending=True, stable=True))
    peak = torch.zeros(1, 30, 31)
    peak[0, 29, 0] = 1
    assert cell_order(peak, (7, 7))[0, 0] == 42


def test_a_coarse_map_is_repeated() -> None:
    maps = torch.tensor([[[1.0, 4.0], [2.0, 3.0]]])
    assert cell_order(maps, (4, 4))[0].tolist() == [2, 3, 6, 7, 10, 11, 14, 15, 8, 9, 12, 13, 0, 1, 4, 5]
    assert cell_order(maps, (2, 4))[0].tolist() == [2, 3, 6, 7, 4, 5, 0, 1]
    assert cell_order(normal(2, 9, 3), (3, 9)).sort().values.tolist() == [list(range(27))] * 2  # finer and coarser


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_broken_map_orders_nothing(bad: float) -> None:
    with pytest.raises(UserError, match="must be finite"):
        cell_order(torch.tensor([[[0.0, bad]]]), (1, 2))


def test_random_orders_and_noise_hang_on_seed_and_image_alone() -> None:
    order, fill = random_order([3, 1, 4, 1], 49, seed=0), noise([3, 1, 4, 1], (3, 8, 8), seed=0)
    assert (order.sort(1).values == torch.arange(49)).all()
    for drawn, again, other in [
        (order, random_order([1], 49, 0), random_order([1], 49, 1)),
        (fill, noise([1], (3, 8, 8), 0), noise([1], (3, 8, 8), 1)),
    ]:
        assert torch.equal(drawn[1], again[0])
        assert torch.equal(drawn[1], drawn[3])
        assert not torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[1], other[0])
    assert random_order([], 49, 0).shape == (0, 49)


def test_noise_is_normal_on_the_asked_scale() -> None:
    fill = noise(range(8), (3, 64, 64), seed=1, dtype=torch.float64)
    assert fill.dtype == torch.float64
    assert fill.mean().abs() < 0.01
    assert fill.std() == pytest.approx(0.3, abs=0.005)
    assert torch.equal(fill.float(), noise(range(8), (3, 64, 64), seed=1))


def test_folding_speeds_a_copy_and_leaves_the_model() -> None:
    model, example = small_net().train(), torch.rand(2, 3, 16, 16)
    model(torch.rand(8, 3, 16, 16))  # running statistics of its own
    state = copy.deepcopy(model.state_dict())
    faster = folded(model, example)
    assert faster is not model
    assert not any(isinstance(m, nn.BatchNorm2d) for m in faster.modules())
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.eval()
    for batch in (example, torch.rand(5, 3, 20, 20)):
        assert torch.allclose(faster(batch), model(batch), rtol=1e-5, atol=1e-5)


class Branching(nn.Module):
    """Control flow on the data: cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Changing(nn.Flatten):
    """Its copy computes something else."""

    def __deepcopy__(self, memo: dict) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.ReLU())


@pytest.mark.parametrize("model", [Branching(), Changing()], ids=["untraceable", "different"])
def test_a_model_that_cannot_be_folded_faithfully_is_itself(model: nn.Module) -> None:
    assert folded(model, torch.randn(2, 3, 4, 4)) is model
