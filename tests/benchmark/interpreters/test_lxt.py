"""Agreement with lxt, the released code of AttnLRP (Achtibat et al. 2024), on a small vision transformer.

Its two files of rules are read alone: the package itself imports language models, which nothing here needs.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_transformers import CONSTANT, EXACT, network
from torch import nn

from benchmark import interpreters

FOUND = importlib.util.find_spec("lxt")
pytestmark = [
    pytest.mark.lxt,
    pytest.mark.skipif(FOUND is None, reason="lxt is not installed (pip install --no-deps lxt)"),
]


@pytest.fixture
def lxt(monkeypatch):
    """Its rules and patches, as modules."""
    for name in [name for name in sys.modules if name.startswith("lxt")]:
        monkeypatch.delitem(sys.modules, name)
    for name, folder in (("lxt", ""), ("lxt.efficient", "efficient")):
        package = ModuleType(name)
        package.__path__ = [str(Path(FOUND.submodule_search_locations[0]) / folder)]
        monkeypatch.setitem(sys.modules, name, package)
    yield importlib.import_module("lxt.efficient.rules"), importlib.import_module("lxt.efficient.patches")
    for name in ("lxt.efficient.rules", "lxt.efficient.patches"):
        sys.modules.pop(name)


@pytest.mark.parametrize("constant", [False, True], ids=["attn_lrp", "cp_lrp"])
def test_a_vision_transformer_has_the_map_of_lxt(lxt, constant, monkeypatch):
    """Its only stabiliser is 1e-10 in f(x)/x of GELU; ours are 1e-14."""
    rules, patches = lxt
    model, images, targets = network("vit")
    ours = interpreters.create("attn_lrp", composite=CONSTANT if constant else EXACT)
    expected = ours.attribute(model, images, targets).detach()
    whole = nn.MultiheadAttention.forward

    def halves(self, query, key, value, *args, **kwargs):
        q, k, v = (rules.divide_gradient(t, by) for t, by in ((query, 4), (key, 4), (value, 2)))
        return whole(self, q, k, v, *args, **kwargs)

    for kind in (nn.GELU, nn.MultiheadAttention):
        monkeypatch.setattr(kind, "original_forward", kind.forward, raising=False)
    monkeypatch.setattr(nn.GELU, "forward", patches.non_linear_forward)
    monkeypatch.setattr(nn.LayerNorm, "forward", patches.layer_norm_forward)
    forward = patches.cp_multi_head_attention_forward if constant else halves
    monkeypatch.setattr(nn.MultiheadAttention, "forward", forward)
    images.requires_grad_()
    gradient = torch.autograd.grad(model(images).gather(1, targets[:, None]).sum(), images)[0]
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close((images * gradient).detach(), expected, rtol=1e-6, atol=1e-9)
