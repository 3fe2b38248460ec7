"""What the tape sees of a forward pass: changes in place, views, operations without a rule, functional weights."""

import pytest
import torch
from nets import InPlace, kitchen
from torch import nn
from torch.func import functional_call

from attacks.errors import UserError
from benchmark import interpreters


def test_inplace_operations_give_the_map_of_their_pure_form():
    torch.manual_seed(0)
    pure = InPlace(False).double()
    inplace = InPlace(True).double()
    inplace.load_state_dict(pure.state_dict())
    x, targets = torch.randn(2, 3, 5, 5, dtype=torch.double), torch.tensor([0, 1])
    before = x.clone()
    lrp = interpreters.create("lrp", composite="epsilon")
    torch.testing.assert_close(lrp.attribute(inplace, x, targets), lrp.attribute(pure, x, targets))
    assert torch.equal(x, before)


def test_an_inplace_change_of_the_input_leaves_the_callers_tensor_alone():
    class Net(nn.Module):
        def forward(self, x):
            x.mul_(2)
            return x.flatten(1)

    x = torch.ones(1, 2, 1, 1)
    relevance = interpreters.create("lrp").attribute(Net(), x, torch.tensor([1]))
    assert x.flatten().tolist() == [1, 1]
    assert relevance.flatten().tolist() == [0, 2]


def test_a_read_through_a_stale_view_is_an_error():
    class Net(nn.Module):
        def forward(self, x):
            y = x * 1
            flat = y.flatten(1)
            y.add_(1)
            return flat

    lrp, model = interpreters.create("lrp"), nn.Sequential(Net(), nn.Linear(2, 2))
    with pytest.raises(UserError, match="view"):
        lrp.attribute(model, torch.ones(1, 2, 1, 1), torch.tensor([1]))


def test_an_operation_without_a_rule_is_named_with_its_module():
    class Gate(nn.Module):
        def forward(self, x):
            return x ** torch.sigmoid(x)

    model = nn.Sequential(nn.Conv2d(1, 2, 1), Gate(), nn.Flatten())
    with pytest.raises(UserError, match="'pow' in module '1'"):
        interpreters.create("lrp")(model, torch.ones(1, 1, 2, 2), torch.tensor([0]))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_an_operation_off_the_way_to_the_logits_needs_no_rule():
    class Net(nn.Module):
        def forward(self, x):
            torch.linalg.norm(x, dim=1)
            return x.flatten(1)

    assert interpreters.create("lrp").attribute(Net(), torch.ones(1, 2, 1, 1), torch.tensor([0])).sum() == 1


def test_functional_weights_get_gradients():
    torch.manual_seed(0)
    model, images, targets = kitchen()
    scale = torch.tensor(1.5, dtype=torch.double, requires_grad=True)

    class Scaled(nn.Module):
        def forward(self, x):
            return functional_call(model, {k: v.detach() * scale for k, v in model.named_parameters()}, (x,))

    heatmaps = interpreters.create("lrp")(Scaled(), images, targets)
    assert torch.autograd.grad(heatmaps.square().sum(), scale)[0].isfinite()
