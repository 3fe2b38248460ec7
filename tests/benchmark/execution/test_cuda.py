"""On a GPU, as far as that can be shown without one: no path leaves a tensor on the CPU, and all give its numbers."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
import torch
from pretended_cuda import Pretended, pretended_cuda

from benchmark import interpreters, models, sections, suite
from benchmark.dissection import study
from benchmark.entries.kind import Entry
from benchmark.entries.trained import TRAINED
from benchmark.execution import compute, executor
from benchmark.execution.engines import Here
from benchmark.experiments import adversarially_trained, loss_landscape, precision, smooth_grad, weight_noise
from benchmark.experiments.given import Given
from benchmark.experiments.pgd import PGD
from benchmark.run import Run
from benchmark.sections import Adversary, Gate, Model, Regulariser, Robustness, Search


def test_the_pretended_gpu_is_as_strict_as_one():
    with pretended_cuda():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert there.device == torch.device("cuda:0")
        assert isinstance(torch.rand(2, device="cuda"), Pretended)
        assert (there + 1).cpu().tolist() == [2, 2, 2]
        assert there[[0, 2]].sum().item() == 2
        for wrong in (lambda: there + here, lambda: torch.cat([there, here]), lambda: there.addcmul_(here, there),
                      lambda: torch.stack([there[0], here[0]]), lambda: here[there.long()],
                      lambda: there.index_put_((there.long(),), here)):  # fmt: skip
            with pytest.raises(RuntimeError, match="same device, but found cuda:0 and cpu"):
                wrong()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(2, device="cuda", generator=torch.Generator())
        with pytest.raises((TypeError, RuntimeError), match="numpy"):
            there.numpy()
        view, before = there.view(3, 1), there
        view.mul_(5)
        before += 1
        assert there.cpu().tolist() == [6, 6, 6]


HERE = patch.object(executor, "Processes", lambda jobs: Here())  # no other process has the pretended GPU


def both(work):
    """work("cpu") and work("cuda"), the second on the pretended GPU."""
    found = [work("cpu")]
    with pretended_cuda(), HERE:
        found.append(work("cuda"))
    return found


ATTENTION = ("attention_rollout", "generic_attention", "attention_grad_cam", "transformer_attribution")  # refuse others


@pytest.mark.parametrize("name", interpreters.names())
def test_interpreters(name):
    images, targets = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(3)

    def explained(device):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = "compact_vit" if name in ATTENTION else "compact_vgg"
            model = models.create(network, num_classes=8, input_size=32).to(device).eval()
            found = interpreters.create(name)(model, images.to(device), targets.to(device))
        assert found.device.type == device
        return found.cpu()

    assert torch.equal(*both(explained))


def assert_same_tables(*folders: Path):
    """Parquet files byte for byte, CSVs but for keys and what a device costs."""
    first, second = ({path.relative_to(f): path for path in f.rglob("*.*")} for f in folders)
    assert first.keys() == second.keys()
    for name, path in first.items():
        if name.suffix == ".csv":
            tables = [
                pd.read_csv(p).drop(columns=["key", "ms_per_image", "peak_mib"], errors="ignore")
                for p in (path, second[name])
            ]
            pd.testing.assert_frame_equal(*tables, check_exact=True, obj=str(name))
        elif name.suffix == ".parquet":
            assert path.read_bytes() == second[name].read_bytes(), name


def small(**parts) -> sections.Suite:
    """The smoke suite on fewer images, in two batches still: the pretended GPU takes time for each operation."""
    smoke = suite.load("smoke")
    images = {"train": 32, "dev": 8, "test": 8, "pairs_train": 8, "pairs_dev": 4, "pairs_test": 4}
    few = {"dataset": smoke.dataset.model_copy(update=images)}
    few |= {"scoring": smoke.scoring.model_copy(update={"batch_size": 6, "aopc_images": 4})}
    return smoke.model_copy(update=few | {"evaluated": ["grad_cam", "lrp_t"]} | parts)


@pytest.mark.slow
def test_a_suite_with_all_that_a_suite_can_have(tmp_path, few_steps):
    search = Search(budgets=[2.0], learning_rates=[1e-3], lambdas=[10.0], rungs=[1, 2], batch_size=4, images=4)
    attacked = ["grad_cam", "lrp_t:softplus", "lrp_t:subspace"]
    parts = {"search": search, "gate": Gate(images=3, cells=2), "robustness": Robustness(images=8, steps=6)}
    curves = small().scoring.model_copy(update={"aopc_images": 2, "aopc_cells": 2})
    given = small(**parts, recipes=[], attacked=attacked, scoring=curves)

    def run(device):
        out = tmp_path / device
        assert compute.run_suite(Run(given, str(tmp_path / f"store-{device}"), None, device), out, jobs=1) == {}
        return out

    assert_same_tables(*both(run))


def test_robust_training(tmp_path):
    robust = Model(epochs=1, adversary=Adversary(epsilon=0.1, steps=2), regulariser=Regulariser())
    given = suite.load("smoke").model_copy(update={"models": {"compact_resnet": robust}})

    def trained(device):
        path = Entry(TRAINED, "compact_resnet").get(Run(given, str(tmp_path / device), None, device))
        return (path / "weights.safetensors").read_bytes()

    first, second = both(trained)
    assert first == second


@pytest.fixture(scope="module")
def smoke(finished, tmp_path_factory):
    """A small suite, finished on the CPU and on the pretended GPU."""
    folder = tmp_path_factory.mktemp("cuda")

    def done(device):
        run = Run(small(), str(folder / f"store-{device}"), None, device)
        assert compute.run_suite(run, folder / device, jobs=1) == {}
        return replace(finished, run=run, out=folder / device)

    return dict(zip(("cpu", "cuda"), both(done), strict=True))


EXPERIMENTS = {
    "weight_noise": lambda given: weight_noise.measure(given, weight_noise.Settings(scales=(0.0, 0.5), draws=1)),
    "loss_landscape": lambda given: loss_landscape.measure(given, loss_landscape.Settings(points=3, grid=2)),
    "precision": precision.measure,
    "adversarially_trained": lambda given: adversarially_trained.measure(
        given, adversarially_trained.Settings(PGD(steps=1), PGD(steps=1, restarts=2))
    ),
    "smooth_grad": smooth_grad.measure,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments(smoke, name, tmp_path):
    swept = {"search": Search(learning_rates=[1e-3], lambdas=[1.0], rungs=[2], batch_size=4)}

    def measured(device):
        changed = smoke[device].run.suite.model_copy(update=swept if name == "smooth_grad" else {})
        again = smoke[device].again(tmp_path / device, suite=changed)
        return EXPERIMENTS[name](Given(again.run, smoke[device].out, jobs=1))

    pd.testing.assert_frame_equal(*both(measured), check_exact=True)


@pytest.mark.slow
def test_dissection(tmp_path):
    given = suite.load("promotion-suppression")
    few = {"images": 4, "concept_images": 8, "attacks": {"pgd": {"epsilon": 0.2, "step": 0.04, "steps": 4}}}
    small = {
        "dataset": given.dataset.model_copy(update={"input_size": 32, "train": 64, "dev": 8, "test": 12}),
        "models": {"compact_resnet": Model(epochs=2)},
        "recipes": suite.load("smoke").recipes,
        "dissection": given.dissection.model_copy(update=few),
    }

    def dissected(device):
        run = Run(given.model_copy(update=small), str(tmp_path / f"store-{device}"), None, device)
        study.run(run, tmp_path / device, jobs=1)
        return tmp_path / device

    assert_same_tables(*both(dissected))
