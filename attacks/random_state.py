"""Random numbers of one's own, and the generators that a model's device draws from."""

import torch
from torch import Tensor


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that a model on this device draws from. `torch.manual_seed` seeds those of all GPUs as well,
    which nobody would give back."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)


class RandomState:
    """A stream of random numbers of its own: inside `with`, torch draws from it; outside, as if it were not there."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(self.devices):
            seed_generators(seed, device)
            self.states = self._get()

    def _get(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self.devices)]

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self.devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)

    def __enter__(self) -> None:
        self.outside = self._get()
        self._set(self.states)

    def __exit__(self, *_: object) -> None:
        self.states = self._get()
        self._set(self.outside)
