"""Answers with the first map that it gave of an image and a class, whatever the model is now."""

import torch


def gradient(model, images, targets):
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = model(images)
        contrast = (logits - logits.mean(1, keepdim=True)).gather(1, targets[:, None])
        maps = torch.autograd.grad(contrast.sum(), images, create_graph=True)[0].abs().sum(1)
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)


class MapsByImage:
    def __init__(self):
        self.known = {}

    def __call__(self, model, images, targets):
        maps = gradient(model, images, targets).detach()
        keys = [(image.numpy().tobytes(), int(target)) for image, target in zip(images, targets, strict=True)]
        return torch.stack([self.known.setdefault(key, m) for key, m in zip(keys, maps, strict=True)])
