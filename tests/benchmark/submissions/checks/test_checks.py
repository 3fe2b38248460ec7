"""The checks as they are run: ours pass, findings come one by one, and a failure says where it is seen."""

import re

import pytest
import torch
from spoiled import errors, good
from torch import Tensor, nn

from attacks.errors import UserError
from benchmark import interpreters
from benchmark.submissions import checks

QUICK = {"smooth_grad": {"samples": 3}, "integrated_gradients": {"steps": 3}}
WARNED = {
    "lrp": {"same for rescaled channels", "same for folded BatchNorm"},
    "lrp_t": {"same for rescaled channels", "same for folded BatchNorm"},
    "simple_grad_t": {"same for rescaled channels"},
    "eigen_cam": {"same for rescaled channels"},
}
SHIFTED = "same for shifted logits"  # every map of a logit is another then
NO_LOGIT = {"eigen_cam", "sobel", "constant", "lrp_t_contrast", "grad_cam_contrast"}
BLIND = {"differs by class", "depends on the weights"}
FAILED = {  # by what the method is: it looks at no class, or at nothing but the image, or not even that
    "eigen_cam": {"differs by class"},
    "deconvolution": {"depends on the image"},
    "sobel": BLIND,
    "constant": {*BLIND, "depends on the image"},
}
UNDECIDED = {  # in the VGG all pixels of the baseline tie in max-pooling, so that rounding says who wins
    "deep_lift": {"gradient by the weights"},
}
ASKED = [
    *("lrp", "lrp_t", "grad_cam", "layer_cam", "eigen_cam", "simple_grad", "simple_grad_t", "input_x_gradient"),
    *("guided_backprop", "deconvolution", "smooth_grad", "integrated_gradients", "deep_lift", "sobel", "constant"),
    *("lrp_t_contrast", "grad_cam_contrast"),
]


@pytest.mark.parametrize("name", ASKED)
def test_every_interpreter_of_ours_passes(name: str, cases, monkeypatch):
    monkeypatch.setattr(checks, "make_cases", lambda device: cases)
    interpreter = interpreters.create(name, **QUICK.get(name, {}))
    flags = {"differentiable": interpreter.differentiable, "stochastic": interpreter.stochastic}
    found = list(checks.run(interpreter, **flags))
    assert set(errors(found)) == FAILED.get(name, set())
    warned = WARNED.get(name.removesuffix("_contrast"), set()) | ({SHIFTED} if name not in NO_LOGIT else set())
    assert {finding.check for finding in found if not finding.ok} == warned | FAILED.get(name, set())
    skipped = {finding.check for finding in found if finding.ok and finding.message}
    undecided = UNDECIDED.get(name, set())
    assert skipped <= {"same on CPU and GPU"} | undecided, "none of the other checks may be given up on"
    asked = {finding.check for finding in found}
    assert ("gradient by the weights" in asked) == interpreter.differentiable
    assert len(asked) == len(found) == 18 + interpreter.differentiable + (not interpreter.stochastic)


def test_findings_come_one_by_one():
    calls = []

    def counted(*args):
        calls.append(args)
        return good(*args)

    found = checks.run(counted, differentiable=False, stochastic=False)
    assert next(found) == ("heatmaps of shape (N, h, w)", True, "", "error")
    assert len(calls) == 3


def test_a_failure_names_every_model_it_is_seen_on():
    def residual_only(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return good(model, images, targets) * len(model.layer4) / 2

    found = errors(checks.run(residual_only, differentiable=False, stochastic=False))
    (message,) = found.values()
    assert message.startswith("on compact_vgg (also on compact_densenet): called as")
    assert re.search(r"AttributeError: 'VGG' object has no attribute 'layer4' \(test_checks.py, line \d+\)$", message)


def test_where_no_map_comes_back_what_is_left_behind_is_still_checked(resnet):
    def stops(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        model.train()
        raise SystemExit("not today")

    found = list(checks.run(stops, differentiable=True, stochastic=False))
    assert [finding.check for finding in found] == ["heatmaps of shape (N, h, w)", *checks.TIDY]
    assert set(errors(found)) == {"heatmaps of shape (N, h, w)", "leaves the model as it was"}
    assert "SystemExit: not today" in found[0].message


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    interpreter = interpreters.create("grad_cam_contrast")  # one of a logit has a warning
    assert all(f.ok for f in checks.run(interpreter, differentiable=True, stochastic=False, device="cuda"))


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_one_clear_line(device: str):
    with pytest.raises(UserError, match=f"device '{device}' cannot be used here; allowed: cpu"):
        next(checks.run(good, differentiable=True, stochastic=False, device=device))
