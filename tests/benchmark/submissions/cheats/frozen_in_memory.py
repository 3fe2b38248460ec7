"""Keeps the first model that it sees, and explains that one for ever."""

import copy

import torch

KEPT = []


def gradient(model, images, targets):
    images = images.detach().requires_grad_()
    logit = model(images).gather(1, targets[:, None]).sum()
    maps = torch.autograd.grad(logit, images, create_graph=True)[0].abs().sum(1)
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / torch.where(high - low > 0, high - low, 1)


class FrozenInMemory:
    differentiable = True

    def __call__(self, model, images, targets):
        if not KEPT:
            KEPT.append(copy.deepcopy(model))
        unmoved = sum(parameter.sum() for parameter in model.parameters()) * 0
        return gradient(KEPT[0], images, targets).detach() + unmoved
