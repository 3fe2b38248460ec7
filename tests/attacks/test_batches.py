"""Another process goes on with the very batches, whatever draws their order and their augmentation."""

import gc
from itertools import product

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from attacks.batches import Batches


class Augmented(TensorDataset):
    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image + torch.randn_like(image), target


def loader(kind: str) -> DataLoader:
    data = Augmented(torch.arange(6.0).view(6, 1, 1, 1), torch.arange(6))
    generator = torch.Generator().manual_seed(3)
    if kind == "sampler":
        return DataLoader(data, 2, sampler=RandomSampler(data, generator=generator))
    workers = {"num_workers": 1, "multiprocessing_context": "fork"} if kind == "workers" else {}
    return DataLoader(data, 2, shuffle=True, generator=None if kind == "global" else generator, **workers)


@pytest.mark.parametrize(
    ("kind", "taken"),
    [*product(("own", "sampler", "global"), (0, 1, 3, 5)), ("workers", 5)],  # a fork takes seconds
)
def test_the_next_batches_are_those_that_would_have_come(kind, taken):
    torch.manual_seed(1)
    first = Batches(loader(kind), torch.device("cpu"))
    for _ in range(taken):
        next(first)
    place, state = (first.begun(), first.taken), torch.get_rng_state()
    expected = [next(first) for _ in range(4)]
    torch.manual_seed(2)
    second = Batches(loader(kind), torch.device("cpu"))
    next(iter(second.loader))  # as a head shift has, in a loader of its own
    second.go_to(*place)
    torch.set_rng_state(state)
    for (images, targets), (others, labels) in zip(expected, [next(second) for _ in range(4)], strict=True):
        assert torch.equal(images, others)
        assert torch.equal(targets, labels)


def test_the_last_reference_ends_a_pass_without_the_garbage_collector():
    """Which ends the queues of a loader's workers before the workers: each is then waited for, for five seconds."""

    class Loader:
        ended = False

        def __iter__(self):
            try:
                yield torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.long)
            finally:
                self.ended = True

    given = Loader()
    batches = Batches(given, torch.device("cpu"))
    gc.disable()
    try:
        next(batches)
        assert not given.ended
        del batches
        assert given.ended
    finally:
        gc.enable()
