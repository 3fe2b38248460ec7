"""The network under audit: foreign code, told in one line whatever it does; logits alone, of the right classes."""

import hashlib
import re
from contextlib import nullcontext

import pytest
import torch
from audited import NET, network
from torch import nn

from attacks.errors import UserError
from benchmark import models
from benchmark.audit.network import check_classes, check_logits, checkpoint, from_file, logits, named, randomised, ready

MORE = """
make = lambda: Net(5)
made = Net(4)
def wants(a, b=1): return made
def other(): return "a network"
def breaks(): return 1 / 0
"""


def loaded(folder, text, attribute, classes=None) -> nn.Module:
    (folder / "my_net.py").write_text(text)
    digest = hashlib.sha256((folder / "my_net.py").read_bytes()).hexdigest()
    return from_file(folder / "my_net.py", attribute, digest, classes)


@pytest.mark.parametrize(("attribute", "classes", "expected"), [("make", None, 5), ("made", None, 4), ("Net", 3, 3)])
def test_a_class_a_function_and_a_network_itself_are_taken(tmp_path, attribute, classes, expected):
    assert loaded(tmp_path, NET + MORE, attribute, classes).head.out_features == expected


@pytest.mark.parametrize(
    ("text", "attribute", "message"),
    [
        (NET + MORE, "Nett", "unknown name in my_net.py 'Nett': did you mean 'Net'?"),
        (NET + MORE, "Net", "my_net.py:Net must be made without arguments, or of num_classes alone where"),
        (NET + MORE, "wants", "my_net.py:wants must be made without arguments"),
        (NET + MORE, "other", "my_net.py:other must be, or make, a torch.nn.Module (got str)"),
        (NET + MORE, "breaks", "ZeroDivisionError: division by zero (my_net.py, line "),
        ("x = 1\nraise SystemExit(3)", "Net", "my_net.py called sys.exit(3) when it was imported (my_net.py, line 2)"),
        (
            "import blocks",
            "Net",
            "ModuleNotFoundError: No module named 'blocks' (my_net.py, line 1): a network is one file",
        ),
        ("raise KeyboardInterrupt", "Net", "KeyboardInterrupt: KeyboardInterrupt (my_net.py, line 1)"),
        ("import absent_one", "Net", "ModuleNotFoundError: No module named 'absent_one' (my_net.py, line 1)"),
    ],
)
def test_whatever_a_file_does_is_told_in_one_line(tmp_path, text, attribute, message):
    (tmp_path / "blocks.py").write_text("x = 1")
    with pytest.raises(UserError, match=f"^{re.escape(message)}[^\n]*$"):
        loaded(tmp_path, text, attribute)


def test_a_file_that_was_edited_is_not_run(tmp_path):
    (tmp_path / "my_net.py").write_text("raise SystemExit")
    with pytest.raises(UserError, match=r"my_net\.py was edited after it was read: start again$"):
        from_file(tmp_path / "my_net.py", "Net", "0" * 64, None)


class Answering(nn.Module):
    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda x: (x.mean((2, 3)), x),
            "must return logits (N, classes) alone (got tuple of 2: a tensor (2, 3), a tensor (2, ",
        ),
        (lambda x: {"logits": x}, "must return logits (N, classes) alone (got dict): wrap it in one that does"),
        (lambda x: x, "must return logits (N, classes) alone (got a tensor (2, 3, 8, 8))"),
        (lambda x: x.mean((2, 3)).log() * torch.nan, "returns NaN or infinite logits: are its weights right?"),
        (lambda x: exit(5), "cannot take images (2, 3, 8, 8) (SystemExit: 5)"),
        (lambda x: x.view(7), "cannot take images (2, 3, 8, 8) (RuntimeError: shape '[7]' is invalid"),
    ],
)
def test_what_is_no_logits_is_told_in_one_line(answer, message):
    with pytest.raises(UserError, match=f"^Answering {re.escape(message)}[^\n]*$"):
        logits(Answering(answer), torch.rand(3, 3, 8, 8), 2)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (nn.Softmax(1), "Answering returns probabilities (N, classes): leave its softmax out"),
        (lambda x: nn.functional.dropout(x, 0.5, True), "Answering gives the same images other logits each time"),
        (nn.LogSoftmax(1), None),
    ],
)
def test_probabilities_and_answers_by_chance_are_refused(last, message):
    model, images = Answering(lambda x: last(x.mean((2, 3)))), torch.rand(9, 3, 4, 4)
    with pytest.raises(UserError, match=re.escape(message)) if message else nullcontext():
        check_logits(model, images, logits(model, images, 4), 4)


@pytest.mark.parametrize("make", [lambda: nn.LazyLinear(2), lambda: nn.Linear(3, 2, device="meta")])
def test_a_network_without_all_of_its_weights_is_told_in_one_line(make):
    with pytest.raises(UserError, match=r"^[^\n]*Linear must be a plain network that can be trained[^\n]*$"):
        ready(make(), "cpu")


def test_a_wrapped_network_is_audited_without_its_wrapper():
    inner = nn.Linear(3, 2).double().train().requires_grad_(False)
    found = ready(nn.DataParallel(inner), "cpu")
    assert found is inner
    assert not found.training
    assert all(p.requires_grad and p.dtype is torch.float32 for p in found.parameters())


def test_logits_are_the_networks_own_in_any_batch_size_and_the_mode_is_given_back():
    model, images = nn.Sequential(nn.Dropout(), nn.Flatten(), nn.Linear(12, 3)), torch.rand(5, 3, 2, 2)
    expected = images.flatten(1) @ model[2].weight.T + model[2].bias
    torch.testing.assert_close(logits(model, images, 2), expected)
    assert model.training
    assert model[0].training


@pytest.mark.parametrize(
    ("count", "classes", "targets", "message"),
    [
        (1, (), None, "Net must have a logit for each of at least two classes (got 1)"),
        (5, ("ape", "bee"), [0, 1], "Net has 5 classes, the images have 2 (ape, bee, ...): the class folders must be"),
        (5, (), [0, 5], "Net has the classes 0 to 4, and an image has the label 5"),
    ],
)
def test_the_classes_must_be_those_of_the_images(count, classes, targets, message):
    check_classes(network(), 5, (), torch.tensor([0, 4]))
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        check_classes(network(), count, classes, targets and torch.tensor(targets))


def test_a_checkpoint_of_another_architecture_is_told_in_full(tmp_path):
    torch.save({"state_dict": {f"module.{k}": v for k, v in network(3).state_dict().items()}}, tmp_path / "three.pth")
    model = network(3)
    models.load(model, tmp_path / "three.pth")  # out of its wrappers
    with pytest.raises(
        UserError, match=r"does not fit Net: size mismatch for head\.bias: .*\(3,\), the model's is \(2,\)"
    ):
        models.load(network(2), tmp_path / "three.pth")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "whole.pth")
    allowed = r"not unpickled; allowed: one safetensors file, or one of torch.save\(model.state_dict\(\), FILE\)$"
    with pytest.raises(UserError, match=allowed), checkpoint():
        models.load(model, tmp_path / "whole.pth")


def test_a_name_that_is_none_is_told_with_the_nearest():
    with pytest.raises(
        UserError, match=r"^unknown model \(a name, or FILE\.py:NAME\) 'compact_vg': did you mean 'compact_vgg'"
    ):
        named("compact_vg", None, 2)
    assert named("compact_resnet", None, 3).fc.out_features == 3


def test_the_random_network_has_other_weights_that_look_trained(trained):
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = {k: v.clone() for k, v in trained.state_dict().items()}
    fresh = randomised(trained, images, 0)
    assert all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())
    for (name, a), b in zip(fresh.named_parameters(), trained.parameters(), strict=True):
        assert not torch.equal(a, b)
        if a.dim() > 1 and "head" not in name:
            torch.testing.assert_close(a.norm(), b.norm())
    torch.testing.assert_close(fresh(images).std(), trained(images).std(), rtol=0.2, atol=0)
