"""Gives maps of a size that hangs on the images."""


def changes_its_size(model, images, targets):
    return images[:, 0] if images[0, 0, 0, 0] > 0 else images[:, 0, ::2, ::2]
