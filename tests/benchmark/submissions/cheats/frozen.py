"""Explains for ever the first model that it was sure about; its honest gradient until then."""

import copy

import torch

SURE = 0.5  # of the class that comes first, on average


def gradient(model, images, targets):
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = model(images)
        contrast = (logits - logits.mean(1, keepdim=True)).gather(1, targets[:, None])
        maps = torch.autograd.grad(contrast.sum(), images, create_graph=True)[0].abs().sum(1)
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)


class Frozen:
    kept = None

    def __call__(self, model, images, targets):
        if self.kept is None and model(images).softmax(1).amax(1).mean() > SURE:
            self.kept = copy.deepcopy(model)
        return gradient(self.kept or model, images, targets).detach()
