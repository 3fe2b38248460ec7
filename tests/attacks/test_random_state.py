"""Random numbers of one's own: a stream that goes on, and that nobody else sees."""

import torch

from attacks.random_state import RandomState


def test_a_stream_goes_on_where_it_was_and_is_seen_by_nobody_else(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)
    torch.manual_seed(5)
    drawn = torch.rand(6)
    torch.manual_seed(3)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: 1 / 0)  # nor are the generators of other devices
    outside, mine = torch.get_rng_state(), RandomState(5, torch.device("cpu"))
    parts = []
    for _ in range(2):
        with mine:
            parts.append(torch.rand(3))
        assert torch.equal(torch.get_rng_state(), outside)
    assert torch.equal(torch.cat(parts), drawn)
