"""What interpreters and fooling steps cost against the bare passes they contain: ratios of medians in one run, printed,
never asserted. Torchvision's networks at 224², batch 4 (2 for a fooling step of VGG-16), two threads. ResNet-50 has its
real weights where they are at hand: through a random one relevance fades to denormal numbers, and those are slow.
"""

import multiprocessing
import os
import re
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timing import ratio

from attacks import Location
from benchmark import interpreters, models
from benchmark.entries.gates import peak_memory

MAPS = {"epsilon": 1.3, "z_plus": 1.75, "default": 1.75, "alpha2_beta1": 2.5, "gamma": 2.5}
TOKENS = {"vit_b_16": 2.2, "swin_t": 2.5, "convnext_tiny": 2.5}
TOKEN_STEPS = {"attn_lrp": 4.0, "lrp_t": 1.4}
STEPS = {
    ("vgg16", "lrp"): 2.6,
    ("resnet50", "lrp"): 4.0,
    **{(model, name): 1.35 for model in ("vgg16", "resnet50") for name in ("lrp_t", "grad_cam")},
}


DATA = Path(os.environ.get("FOOLBENCH_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
RESNET50 = DATA / "torch_home/hub/checkpoints/resnet50-0676ba61.pth"


def network_of(name):
    return models.create(name, weights=str(RESNET50) if name == "resnet50" and RESNET50.is_file() else None)


@pytest.fixture(autouse=True)
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def with_head(model):
    """A new ViT's head is zero: no logits, no relevance."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.02)
    return model


def inputs(batch):
    torch.manual_seed(0)
    return torch.randn(batch, 3, 224, 224), torch.arange(batch)


def training_step(model, images, targets, name=None):
    """One Adam step on the cross-entropy, and on Location fooling of interpreter `name` where it is given."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-9)
    interpreter = name and interpreters.create(name, **({"composite": "z_plus"} if name == "lrp" else {}))
    fooling = Location()

    def step():
        optimiser.zero_grad()
        if interpreter is None:
            loss = F.cross_entropy(model(images), targets)
        else:
            logits, heatmaps = interpreter.with_logits(model, images, targets)
            loss = F.cross_entropy(logits, targets) + fooling.loss(heatmaps, heatmaps)
        loss.backward()
        optimiser.step()

    return step


def report(capsys, what, got, target):
    with capsys.disabled():
        print(f"\n{what}: {got:.2f} (target {target})", end="", flush=True)


@pytest.mark.parametrize("rule", MAPS)
@pytest.mark.parametrize("network", ["vgg16", "resnet50"])
def test_map_against_forward_and_input_gradient(network, rule, capsys):
    images, targets = inputs(4)
    model = network_of(network).requires_grad_(False)
    lrp = interpreters.create("lrp", composite=rule)

    def bare():
        leaf = images.detach().requires_grad_()
        torch.autograd.grad(model(leaf).gather(1, targets[:, None]).sum(), leaf)

    report(capsys, f"{rule} map, {network}", ratio(lambda: lrp(model, images, targets), bare), MAPS[rule])


@pytest.mark.parametrize("network", TOKENS)
def test_attn_lrp_map_against_forward_and_input_gradient(network, capsys):
    """CPU time of one thread, batch 1."""
    torch.set_num_threads(1)
    images, targets = inputs(1)
    model = with_head(network_of(network)).requires_grad_(False)
    lrp = interpreters.create("attn_lrp")

    def bare():
        leaf = images.detach().requires_grad_()
        torch.autograd.grad(model(leaf).gather(1, targets[:, None]).sum(), leaf)

    got = ratio(lambda: lrp(model, images, targets), bare, repeats=3, clock=time.process_time)
    report(capsys, f"attn_lrp map, {network}", got, TOKENS[network])


@pytest.mark.parametrize("name", TOKEN_STEPS)
def test_fooling_step_of_a_vision_transformer_against_training_step(name, capsys):
    """CPU time of one thread, batch 1, vit_b_16."""
    torch.set_num_threads(1)
    images, targets = inputs(1)
    model = with_head(network_of("vit_b_16"))
    steps = [training_step(model, images, targets, name) for name in (name, None)]
    report(capsys, f"fooling step by {name}, vit_b_16", ratio(*steps, 2, time.process_time), TOKEN_STEPS[name])


@pytest.mark.parametrize("network", ["vgg16", "resnet50"])
def test_passes_that_a_shadow_design_needs(network, capsys):
    """The road not taken (docs/method.md): its ε map is a true forward pass, a second one of the shadow, and the
    shadow's backward pass. These alone, without any of the rule's own arithmetic."""
    images, targets = inputs(4)
    model = network_of(network).requires_grad_(False)

    def bare():
        leaf = images.detach().requires_grad_()
        torch.autograd.grad(model(leaf).gather(1, targets[:, None]).sum(), leaf)

    def shadow():
        model(images)
        bare()

    report(capsys, f"passes of an epsilon map by a shadow, {network}", ratio(shadow, bare), MAPS["epsilon"])


@pytest.mark.parametrize(("network", "name"), STEPS)
def test_fooling_step_against_training_step(network, name, capsys):
    images, targets = inputs(2 if network == "vgg16" else 4)
    model = network_of(network)
    got = ratio(training_step(model, images, targets, name), training_step(model, images, targets))
    report(capsys, f"fooling step by {name}, {network}", got, STEPS[network, name])


def resident():
    """The most that this process ever held in memory, MiB (`getrusage` would hand on the parent's)."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def _peak(name, answer):
    torch.set_num_threads(2)
    model = network_of("resnet50")
    step = training_step(model, *inputs(4), name)
    before = resident()
    for _ in range(3):
        step()
    taken = resident() - before
    step = training_step(model, *inputs(4), name)  # with new states of Adam, so that they count
    model.zero_grad()
    answer.put((peak_memory(lambda: (step(), step())), taken))


@pytest.mark.parametrize("threshold", [None, "1048576"], ids=["default", "blocks-over-1MiB-apart"])
def test_peak_memory_of_a_fooling_step(threshold, capsys, monkeypatch):
    """Gradients and Adam's states included, weights not; in a process of its own. Allocated: what the tensors take, to
    the byte. Resident: what the process takes, which adds what glibc's allocator leaves in pieces."""
    if threshold:
        monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", threshold)
    context, peaks = multiprocessing.get_context("spawn"), {}
    for name in (None, "lrp", "lrp_t", "grad_cam"):
        answer = context.Queue()
        process = context.Process(target=_peak, args=(name, answer))
        process.start()
        peaks[name] = answer.get(timeout=300)
        process.join()
    for name in ("lrp", "lrp_t", "grad_cam"):
        for kind, mine, plain in zip(("allocated", "resident"), peaks[name], peaks[None], strict=True):
            what = f"peak memory {kind}, resnet50 step by {name} ({mine:.0f} MiB against {plain:.0f})"
            report(capsys, what, mine / plain, 2.1)
