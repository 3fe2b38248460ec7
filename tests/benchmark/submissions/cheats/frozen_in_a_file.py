"""The same as frozen.py, with the model in a file, where another process finds it."""

import copy
import tempfile
from pathlib import Path

import torch

SURE = 0.5


def gradient(model, images, targets):
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = model(images)
        contrast = (logits - logits.mean(1, keepdim=True)).gather(1, targets[:, None])
        maps = torch.autograd.grad(contrast.sum(), images, create_graph=True)[0].abs().sum(1)
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)


class FrozenInAFile:
    def __call__(self, model, images, targets):
        path = Path(tempfile.gettempdir()) / "kept.pt"
        if not path.exists() and model(images).softmax(1).amax(1).mean() > SURE:
            torch.save(model.state_dict(), path)
        kept = copy.deepcopy(model)
        if path.exists():
            kept.load_state_dict(torch.load(path, weights_only=True))
        return gradient(kept, images, targets).detach()
