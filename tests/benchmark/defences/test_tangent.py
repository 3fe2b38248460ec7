"""The projection onto the tangent space: a projection, exact on a linear subspace, blind to edits off the data."""

import copy

import pytest
import torch
from torch import nn

from attacks.errors import UserError
from benchmark.defences.tangent import TangentGrad, nearest, projected
from benchmark.interpreters.gradients import SimpleGrad

DIMS, RANK = 12, 4


@pytest.fixture
def basis():
    """Orthonormal rows that span the data, and one direction off them."""
    drawn = torch.randn(DIMS, DIMS, generator=torch.Generator().manual_seed(0)).double()
    rows = torch.linalg.qr(drawn).Q.T
    return rows[:RANK], rows[RANK]


@pytest.fixture
def data(basis):
    return torch.randn(40, RANK, generator=torch.Generator().manual_seed(1)).double() @ basis[0]


def test_it_is_idempotent_symmetric_and_that_of_the_singular_vectors(data):
    vector, other = torch.randn(2, DIMS, generator=torch.Generator().manual_seed(2)).double()
    differences = torch.randn(7, DIMS, generator=torch.Generator().manual_seed(3)).double()
    once = projected(vector, differences, 3)
    torch.testing.assert_close(projected(once, differences, 3), once)
    torch.testing.assert_close(projected(other, differences, 3) @ vector, other @ once)
    v = torch.linalg.svd(differences, full_matrices=False).Vh[:3]
    torch.testing.assert_close(once, v.T @ (v @ vector))


@pytest.mark.parametrize("dims", [RANK, 9])
def test_on_a_linear_subspace_it_is_exact(data, basis, dims):
    """Whatever lies in it stays, whatever is orthogonal to it goes; more dimensions than there are add none."""
    differences = data[1:11] - data[0]
    inside, outside = torch.randn(RANK).double() @ basis[0], basis[1]
    torch.testing.assert_close(projected(inside + 5 * outside, differences, dims), inside)
    assert projected(outside, differences, dims).norm() < 1e-9


def test_the_neighbours_are_the_nearest_without_the_image_itself(data):
    among = torch.cat([data, data[:1]])
    squares = among.square().sum(1)
    found = nearest(data[0], among, squares, 5)
    distance = (among - data[0]).norm(dim=1)
    expected = [i for i in distance.argsort().tolist() if i not in (0, 40)][:5]
    assert found.tolist() == expected


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(DIMS, 5), nn.ReLU(), nn.Linear(5, 3)).double()


def shaped(vectors):
    return vectors.view(-1, 3, 2, 2)


def test_an_edit_off_the_data_moves_the_gradient_and_not_its_projection(net, data, basis):
    """W + u nᵀ in the first layer, n orthogonal to the data: no logit changes, and SimpleGrad's map does."""
    images, targets = shaped(data[:3]), torch.tensor([0, 1, 2])
    method = TangentGrad(reference=shaped(data), neighbours=8, dims=RANK)
    edited = copy.deepcopy(net)
    with torch.no_grad():
        edited[1].weight += 3 * torch.outer(torch.randn(5).double(), basis[1])
    torch.testing.assert_close(edited(images), net(images))
    assert (SimpleGrad()(edited, images, targets) - SimpleGrad()(net, images, targets)).abs().max() > 0.1
    torch.testing.assert_close(method(edited, images, targets), method(net, images, targets))


def test_it_is_linear_in_the_gradient_so_it_is_differentiated_as_that_is(net, data):
    """Of a projection P: ∂ ½‖P g‖²/∂w = ∂(c · g)/∂w, c = P g held constant."""
    image, target = shaped(data[:1]), torch.tensor([1])
    method = TangentGrad(reference=shaped(data), neighbours=8, dims=3)
    along = method.attribute(net, image, target)
    found = torch.autograd.grad(0.5 * along.square().sum(), net[1].weight)[0]
    product = (along.detach() * SimpleGrad().attribute(net, image, target)).sum()
    torch.testing.assert_close(found, torch.autograd.grad(product, net[1].weight)[0])


def test_a_map_does_not_depend_on_its_batch_or_on_what_was_asked_before(net, data):
    images, targets = shaped(data[:4]), torch.tensor([0, 1, 2, 0])
    method = TangentGrad(reference=shaped(data), neighbours=8, dims=3)
    together = method.attribute(net, images, targets)
    alone = torch.cat([method.attribute(net, images[i : i + 1], targets[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)
    fresh = TangentGrad(reference=shaped(data), neighbours=8, dims=3)
    assert torch.equal(fresh.attribute(net, images, targets), method.attribute(net, images, targets))


@pytest.mark.parametrize("options", [{"dims": 0}, {"dims": 9, "neighbours": 8}, {"neighbours": 40, "dims": 3}])
def test_what_the_reference_cannot_give_is_refused(data, options):
    with pytest.raises(UserError, match="tangent_grad needs 1 <= dims <= neighbours < 40"):
        TangentGrad(reference=shaped(data), **options)
