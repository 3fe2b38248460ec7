"""A network cut in two: what a module is given is computed once, and the network above it runs on that.

A cut is the name of a module whose parents run their children one after another, as a `Sequential` does and most
classifiers do with their stages. Whether a network is such a one is tried, not believed (`check_cut`).
"""

import copy
from collections.abc import Callable, Collection, Iterable
from itertools import takewhile

import torch
from torch import Tensor, nn

from attacks.errors import Refused, UserError
from attacks.given import logits_in
from attacks.modes import eval_mode

CLOSE = 1e-4  # of maps in [0, 1]: more than rounding moves them


class _Reached(Exception):
    """The module has what it is given; nothing above it need run."""


def find_cut(model: nn.Module, names: Collection[str]) -> str:
    """The highest cut below which nothing lies of these parameters and modules; "" where the first child holds one.

    Children are taken to run in the order in which they are registered; within the first that holds one it goes on
    where that child is a Sequential.
    """
    children = [name for name, _ in model.named_children()]
    parts = [name.partition(".") for name in names]
    if not parts or not {first for first, _, _ in parts} <= set(children):
        return ""
    lowest = min((first for first, _, _ in parts), key=children.index)
    child, inside = model.get_submodule(lowest), [rest for first, _, rest in parts if first == lowest]
    chain = type(child).forward is nn.Sequential.forward and all(inside)
    if deeper := find_cut(child, inside) if chain else "":
        return f"{lowest}.{deeper}"
    return lowest if children.index(lowest) else ""


def above(model: nn.Module, cut: str) -> nn.Module:
    """The network from the cut on, applied to what its module is given; the model itself where `cut` is "".

    It has the model's class, names and very parameters, so that what moves there moves in the model; identities stand
    in the place of what runs before.
    """
    if not cut:
        return model
    child, _, rest = cut.partition(".")
    part = copy.copy(model)
    part._modules = dict(model._modules)
    for name, _ in takewhile(lambda named: named[0] != child, model.named_children()):
        part._modules[name] = nn.Identity()
    part._modules[child] = above(model.get_submodule(child), rest)
    return part


def below(model: nn.Module, cut: str, images: Tensor) -> Tensor:
    """What the module of the cut is given, for images (N, C, H, W); nothing above it runs, no graph is kept."""
    taken: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        taken.append(args[0])
        raise _Reached

    handle = model.get_submodule(cut).register_forward_pre_hook(hook)
    try:
        with eval_mode(model), torch.no_grad():
            model(images)
    except _Reached:
        return taken[0]
    finally:
        handle.remove()
    raise Refused(f"module {cut!r} does not run")


@torch.no_grad()
def check_cut(
    model: nn.Module,
    cut: str,
    images: Tensor,
    targets: Tensor,
    interpreters: Iterable[Callable[[nn.Module, Tensor, Tensor], Tensor]],
) -> None:
    """Raise `Refused` unless the network above the cut gives the very logits of the whole one, leaves what it is given
    as it is, and each interpreter's maps of both are the same. Tried on the images (N, C, H, W)."""
    kept, tail, name = below(model, cut, images), above(model, cut), type(model).__name__
    if not isinstance(kept, Tensor) or kept.dim() != 4:
        raise Refused(f"what {cut!r} of {name} is given must be (N, C, h, w) to be kept")
    before = kept.clone()
    with eval_mode(model):
        try:
            same = torch.equal(logits_in(tail(kept), len(images)), logits_in(model(images), len(images)))
        except (RuntimeError, UserError):
            same = False
    if not same:
        raise Refused(f"{name} above {cut!r} does not give the logits of the whole: its parts run in another order")
    if not torch.equal(kept, before):
        raise Refused(f"{name} writes in place into what {cut!r} is given")
    for interpreter in interpreters:
        maps = interpreter(model, images, targets)
        try:
            others = interpreter(tail, kept, targets)
        except (RuntimeError, UserError) as error:
            raise Refused(f"{interpreter} needs what lies below {cut!r} ({error})") from error
        if maps.shape != others.shape or not torch.allclose(maps, others, rtol=0, atol=CLOSE):
            raise Refused(f"{interpreter} has other maps above {cut!r}: it needs what lies below")
