"""The batches of a loader, over and over. Where one stands in them can be noted, and another process go on there."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from attacks.errors import UserError
from attacks.given import check_finite, check_images, class_indices

Batch = tuple[Tensor, Tensor]
_END = object()


class Batches:
    """Those of a loader, on a device; with `pairs`, of two classes an image, targets (N, 2). `taken` counts the batches
    of this pass through the loader.

    Nothing here refers to itself, as a generator of a method would: a loader's workers are then ended by the last
    reference, at once. The garbage collector ends their queues first, and each is waited for in vain, for five seconds.
    """

    def __init__(self, loader: Iterable[Batch], device: torch.device, *, pairs: bool = False) -> None:
        self.loader, self.device, self.pairs, self.taken = loader, device, pairs, 0
        self._begun = list[Tensor]()
        self._rest: Iterator[Any] = iter(())

    def __next__(self) -> Batch:
        batch = next(self._rest, _END)
        if batch is _END:
            again, self._begun, self.taken = self.taken > 0, [], 0
            self._begun = self.begun()
            try:
                self._rest = iter(self.loader)
            except TypeError:
                kind = type(self.loader).__name__
                raise UserError(f"the loader must be iterable, again and again (got {kind})") from None
            batch = next(self._rest, _END)
            if batch is _END:
                passed = "none in its second pass: a generator runs once" if again else "none"
                raise UserError(f"the loader must yield at least one batch (got {passed})")
        images, targets = _checked(batch, self.pairs)
        self.taken += 1
        return images.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)

    def begun(self) -> list[Tensor]:
        """How the generators stood when this pass began, or as they are before the first one: torch's own, from which
        augmentation draws, and the loader's."""
        return self._begun or [torch.get_rng_state(), *(generator.get_state() for generator in self._generators())]

    def go_to(self, begun: list[Tensor], taken: int) -> None:
        """To where another one stood: its pass is begun anew, and what it took is loaded and left. Torch's generator
        is the caller's to give back."""
        torch.set_rng_state(begun[0])
        for generator, state in zip(self._generators(), begun[1:], strict=True):
            generator.set_state(state)
        for _ in range(taken):
            next(self)

    def _generators(self) -> list[torch.Generator]:
        """The loader's own, which give its order and seed its workers."""
        owners = (self.loader, getattr(self.loader, "sampler", None))
        found = [generator for owner in owners if (generator := getattr(owner, "generator", None)) is not None]
        return list({id(generator): generator for generator in found}.values())


def _checked(batch: Any, pairs: bool) -> Batch:
    """A batch (images, targets) with at least one image; its targets, class indices, as a tensor of int64."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = f"{len(batch)} values" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise UserError(f"the loader must yield (images, targets) (got {got})")
    images, targets = batch
    check_images(images)
    check_finite(images)
    if not len(images):
        raise UserError(f"a batch of the loader must hold at least one image (got {tuple(images.shape)})")
    if not (pairs and isinstance(targets, Tensor)):
        targets = class_indices(targets, images)
    if not pairs:
        return images, targets
    if targets.shape != (len(images), 2):
        raise UserError(f"targets of two-object images must be ({len(images)}, 2) (got {tuple(targets.shape)})")
    return images, torch.stack([class_indices(one, images) for one in targets.unbind(1)], 1)
