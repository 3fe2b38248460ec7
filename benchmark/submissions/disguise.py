"""What a model is sent as to a submission: one that computes the same, and does not tell whose copy it is.

A fooled model has its clean model's BatchNorm statistics to the bit, and most of its weights nearly. So the statistics
are taken into scale and shift (`equalise`), and the channels between two layers come in an order that depends on the
weights, so that no two models share it. The order stays where a residual sum or a concatenation reads the channels
(`benchmark.submissions.checks.twins`).
"""

import copy
import hashlib
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from benchmark.submissions.checks.twins import Chain, find_chains, permute
from benchmark.submissions.equalise import equalise
from benchmark.submissions.wire import content, fingerprint

Names = tuple[str, tuple[str, ...], str]
_CHAINS: WeakKeyDictionary[nn.Module, list[Names]] = WeakKeyDictionary()  # of a model, whose weights may change
_COPIES: WeakKeyDictionary[nn.Module, tuple[dict[str, str], nn.Module]] = WeakKeyDictionary()
"""Of a model: what it was when it was copied, and its copy."""


@torch.no_grad()
def disguised(model: nn.Module) -> nn.Module:
    """A copy, the same for the same weights, to be left as it is: all batches of a model share it. The given model is
    untouched."""
    state = fingerprint(model)
    made_of, twin = _COPIES.get(model, ({}, model))
    if made_of != state:
        twin = _disguise(model)
        _COPIES[model] = state, twin
    return twin


def _disguise(model: nn.Module) -> nn.Module:
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(content(value))
    generator = torch.Generator().manual_seed(int.from_bytes(digest.digest()[:7]))
    twin = copy.deepcopy(model)
    for writer, norms, reader in _chains(model):
        get = twin.get_submodule
        chain: Any = get(writer), [get(norm) for norm in norms], get(reader)
        permute(Chain(*chain), generator)
    return equalise(twin)


def _chains(model: nn.Module) -> list[Names]:
    """By the names of their modules; found once for a model, for to trace it takes longer than to run it."""
    if model not in _CHAINS:
        names = {module: name for name, module in model.named_modules()}
        _CHAINS[model] = [
            (names[chain.writer], tuple(names[norm] for norm in chain.norms), names[chain.reader])
            for chain in find_chains(model)
        ]
    return _CHAINS[model]
