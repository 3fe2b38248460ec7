"""Checks of an interpreter that somebody submits: everything that is wrong with it, before anything is scored.

An interpreter is any callable (model, images (N, 3, H, W), targets (N,)) -> heatmaps (N, h, w). `run` calls it on small
untrained networks of every architecture of the default suite, with drawn images, and yields a `Finding` for each check
as it comes. A check is a function in one of the files beside this one, and a line in a literal here.
"""

from collections.abc import Iterator
from functools import partial

from benchmark.submissions.checks.gradient import gradient_by_the_weights
from benchmark.submissions.checks.maps import (
    any_batch_size,
    depends_on_the_image,
    depends_on_the_weights,
    differs_by_class,
    finite,
    same_alone_and_in_a_batch,
    same_on,
    same_twice,
    same_without_gradients,
    shape_and_dtype,
    unit_range,
)
from benchmark.submissions.checks.room import leaves_room
from benchmark.submissions.checks.setting import Check, Finding, Interpreter, conclude, judge, make_cases
from benchmark.submissions.checks.shift import same_for_shifted_logits
from benchmark.submissions.checks.tidy import generators_as_they_were, inputs_as_they_were, model_as_it_was
from benchmark.submissions.checks.twins import TWINS, same_for_twin

MAPS: dict[str, Check] = {
    "finite": finite,
    "in [0, 1]": unit_range,
    "any batch size": any_batch_size,
    "same alone and in a batch": same_alone_and_in_a_batch,
    "same under no_grad": same_without_gradients,
    "differs by class": differs_by_class,
    "depends on the image": depends_on_the_image,
    "depends on the weights": depends_on_the_weights,
    "leaves room to be fooled": leaves_room,
}
TIDY: dict[str, Check] = {
    "leaves the model as it was": model_as_it_was,
    "leaves the random state as it was": generators_as_they_were,
    "leaves images and targets as they were": inputs_as_they_were,
}
WARNINGS = {"same for rescaled channels", "same for folded BatchNorm", "same for shifted logits"}  # of methods in use


def run(interpreter: Interpreter, *, differentiable: bool, stochastic: bool, device: str = "cpu") -> Iterator[Finding]:
    """Findings of every check that applies, errors and warnings, each as soon as it is known.

    `differentiable`: heatmaps are meant to keep an honest graph to the weights. `stochastic`: they may depend on the
    global random generators. On models for which no heatmap of the right shape comes back, only the checks that look
    at no heatmap are made. Whatever the interpreter does to random generators and grad mode is undone after each
    check. Raises UserError where `device` cannot be used.
    """
    cases = make_cases(device)
    first = {case.name: judge(shape_and_dtype, interpreter, case) for case in cases}
    yield conclude("heatmaps of shape (N, h, w)", first, "error")
    usable = [case for case in cases if not first[case.name].failure]
    later = {**MAPS, "same twice": partial(same_twice, stochastic)}
    later |= {} if stochastic else {"same on CPU and GPU": same_on}  # each device has random generators of its own
    later |= {"gradient by the weights": gradient_by_the_weights} if differentiable else {}
    later |= {f"same for {kind}": partial(same_for_twin, kind) for kind in TWINS}
    later |= {"same for shifted logits": same_for_shifted_logits}
    for name, check in [*(later.items() if usable else ()), *TIDY.items()]:
        asked = cases if name in TIDY else usable
        verdicts = {case.name: judge(check, interpreter, case) for case in asked}
        yield conclude(name, verdicts, "warning" if name in WARNINGS else "error")
