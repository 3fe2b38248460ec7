"""Models: torchvision's classifiers by name, and the small ones of `compact`."""

import difflib
import re
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.fx
import torchvision.models as zoo
from torch import Tensor, nn

from attacks.errors import UserError, one_line, unknown
from benchmark.models.compact import COMPACT as COMPACT
from benchmark.models.compact import SIZED, SMALL

BLOCKS = ("BasicBlock", "Bottleneck", "ResBottleneckBlock", "_DenseLayer", "Fire", "InvertedResidual",
          "_InvertedResidual", "MaxVitLayer", "CNBlock", "Inception", "InceptionA", "InceptionB", "InceptionC",
          "InceptionD", "InceptionE")  # fmt: skip
TOKEN_BLOCKS = ("EncoderBlock", "SwinTransformerBlock", "SwinTransformerBlockV2")  # of no maps (N, C, h, w)
GATES = ("squeeze", "excit", "attention", "gate", "cbam")  # in names of classes that weigh a feature map, in lower case


def names() -> list[str]:
    """The compact models, CIFAR's ResNet-20, the small transformer and ConvNeXt, then every torchvision classifier."""
    return [*SMALL, *zoo.list_models(module=zoo)]


def create(
    name: str, *, weights: str | None = None, num_classes: int | None = None, input_size: int | None = None
) -> nn.Module:
    """A model in eval mode.

    `weights`: a torchvision weights name such as "IMAGENET1K_V1", or the path of a checkpoint (safetensors, or a
    state_dict that `torch.load(weights_only=True)` accepts). The models of `SMALL` need `num_classes`; `input_size`,
    where given, must be a multiple of 16, at least 32. Raises `UserError`.
    """
    if name not in names():
        raise unknown("model", name, names())
    path = Path(weights) if weights and ("/" in weights or Path(weights).suffix) else None
    if name in SMALL:
        if num_classes is None:
            raise UserError(f"model {name!r} needs num_classes")
        if input_size is not None and (input_size % 16 or input_size < 32):
            raise UserError(f"input_size of {name!r} must be a multiple of 16, at least 32 (got {input_size})")
        if weights and path is None:
            raise UserError(f"weights of {name!r} must be the path of a checkpoint (got {weights!r})")
        sized = {"input_size": input_size} if name in SIZED and input_size else {}
        model = SMALL[name](num_classes, **sized)
    else:
        model = _torchvision(name, None if path else weights, num_classes)
    if path is not None:
        load(model, path)
    return model.eval()


def _torchvision(name: str, weights: str | None, num_classes: int | None) -> nn.Module:
    options: dict[str, Any] = {}
    if weights is None:
        options["num_classes"] = 1000 if num_classes is None else num_classes
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = True
        return zoo.get_model(name, weights=None, **options)
    available = zoo.get_model_weights(name)
    if weights not in available.__members__:
        raise unknown(f"weights of {name}", weights, available.__members__)
    if num_classes not in (None, 1000):
        raise UserError(f"{name} with weights {weights!r} has 1000 classes (got num_classes={num_classes})")
    try:
        # torchvision itself would unpickle the file: read it once as tensors only, which a pickle with code fails
        available[weights].get_state_dict(check_hash=True, weights_only=True)
        return zoo.get_model(name, weights=weights)
    except Exception as error:  # no download, or a file in torch's cache that is cut short or foreign
        raise UserError(
            f"weights {weights!r} of {name!r} could not be loaded: {_reason(error)}{_cached(name)}"
        ) from error


def class_names(name: str, weights: str) -> list[str]:
    """Of torchvision's own weights; none are known of a checkpoint's."""
    known = {} if name in SMALL else zoo.get_model_weights(name).__members__
    return list(known[weights].meta.get("categories", [])) if weights in known else []


def _cached(name: str) -> str:
    """What there is of the model's weights on this machine, as a hint."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    there = [w.name for w in zoo.get_model_weights(name) if (folder / Path(w.url).name).is_file()]
    return f"; in {folder} are {', '.join(there)}" if there else f"; {folder} has none of its weights"


WRAPPERS: tuple[str, ...] = ("state_dict", "model_state_dict", "model", "net", "network")
WRAPPERS += ("state_dict_ema", "model_ema", "ema_state_dict", "ema")  # averages, where the plain weights are not there
PREFIXES = ("model.", "net.", "network.", "backbone.", "encoder.")  # beside _orig_mod. and module., wherever they stand
COUNTERS = ("n_averaged", "initted", "step")


def preprocessing(name: str, weights: str | None) -> Any:
    """torchvision's transforms of a classifier's weights: `resize_size`, `crop_size`, `interpolation`, `antialias`,
    `mean` and `std`. For a checkpoint those of the first weights for the size that the architecture takes by default.
    """
    available = zoo.get_model_weights(name)
    if weights in available.__members__:
        return available[weights].transforms()
    presets = [member.transforms() for member in available]
    if name.startswith("vit"):  # the one family whose weights fix the size; a checkpoint is loaded into 224 pixels
        presets = [preset for preset in presets if preset.crop_size == [224]]
    return presets[0]


@cache
def transforms_of(name: str, weights: str | None) -> str | None:
    """ "ARCHITECTURE/WEIGHTS" where torchvision's weights are named that want images other than most of them: the short
    side bilinear to 256, the central 224, ImageNet's mean and standard deviation; else None."""
    if name in SMALL or weights not in zoo.get_model_weights(name).__members__:
        return None
    preset, most = preprocessing(name, weights), zoo.ResNet50_Weights.IMAGENET1K_V1.transforms()
    wanted = ("resize_size", "crop_size", "interpolation", "mean", "std")
    return None if all(getattr(preset, w) == getattr(most, w) for w in wanted) else f"{name}/{weights}"


def named_transforms(transforms: str) -> Any:
    """`preprocessing` by "ARCHITECTURE/WEIGHTS". Raises `UserError` for an unknown one."""
    name, _, weights = transforms.partition("/")
    if name not in zoo.list_models(module=zoo):
        raise unknown("architecture of transforms", name, zoo.list_models(module=zoo))
    if weights not in zoo.get_model_weights(name).__members__:
        raise unknown(f"weights of {name} in transforms", weights, zoo.get_model_weights(name).__members__)
    return preprocessing(name, weights)


def load(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint into the model: safetensors, or a state_dict that is read without unpickling code."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint not found: {path}")
    kind = type(model).__name__
    try:
        state = unprefixed(read_state(path), model.state_dict())
        if difference := differing(state, model.state_dict()):
            raise UserError(f"checkpoint {path} does not fit {kind}: {difference}")
        model.load_state_dict(state)  # a plain dict: what counts batches may be missing in it
    except UserError:
        raise
    except Exception as error:  # foreign bytes fail in many ways; all of them mean the same to the user
        raise UserError(f"checkpoint {path} does not fit {kind}: {_reason(error)}") from error
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"checkpoint {path}: {key!r} must be finite (it has NaN or infinities: did it diverge?)")


def differing(state: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """How a checkpoint differs from the model's own state, in words; "" where it does not. Counters of batches, which
    old ones lack, may be missing."""
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    foreign = [str(key) for key in state if key not in expected]
    both = [key for key in state if key in expected]
    shapes = [key for key in both if state[key].shape != expected[key].shape]
    kinds = [key for key in both if state[key].is_floating_point() != expected[key].is_floating_point()]
    parts = []
    if missing:
        near = difflib.get_close_matches(missing[0], foreign, n=1, cutoff=0.0)
        pair = f", where it has {near[0]!r}" if near else ""
        parts.append(f'Missing key(s): {len(missing)} of {len(expected)}, first "{missing[0]}"{pair}')
    if foreign:
        parts.append(f'Unexpected key(s): {len(foreign)} of {len(state)}, first "{foreign[0]}"')
    if shapes:
        first = shapes[-1]  # the last: mostly the head, of another number of classes
        sizes = f"{tuple(state[first].shape)}, the model's is {tuple(expected[first].shape)}"
        others = f" and {len(shapes) - 1} more" if len(shapes) > 1 else ""
        parts.append(f"size mismatch for {first}: the checkpoint's is {sizes}{others}")
    if kinds:
        types = f"{state[kinds[0]].dtype}, the model's is {expected[kinds[0]].dtype}"
        parts.append(f"type mismatch for {kinds[0]}: the checkpoint's is {types}")
    return "; ".join(parts)


def _reason(error: Exception) -> str:
    text = one_line(error)
    return text if len(text) <= 300 else f"{text[:300]} ..."


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, out of what training wraps them in (`WRAPPERS`, the first that is there)."""
    state: Any
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    while isinstance(state, dict) and (key := next((k for k in WRAPPERS if isinstance(state.get(k), dict)), None)):
        state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"checkpoint {path} holds no state_dict{_held(state)}")
    return state


def _held(state: Any) -> str:
    if not isinstance(state, dict):
        return f" (got {type(state).__name__})"
    key, value = next((key, value) for key, value in state.items() if not isinstance(value, Tensor))
    return f": {key!r} is no tensor but {type(value).__name__}; allowed are tensors, or a state_dict under one of " + (
        ", ".join(WRAPPERS)
    )


def unprefixed(state: dict[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """Without the prefixes that all keys share, and the names of wrapped parts, where the model does not have them. An
    average counts its steps beside the weights."""
    expected = set(expected)
    state = {key: value for key, value in state.items() if key in expected or key not in COUNTERS}
    if not state.keys() <= expected:
        state = _renamed(state, lambda key: re.sub(r"(?<![^.])(_orig_mod|module)\.", "", str(key)))
    while not expected & state.keys():
        prefix = next((p for p in PREFIXES if state and all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = _renamed(state, partial(_without, prefix))
    return state


def _without(prefix: str, key: str) -> str:
    return key.removeprefix(prefix)


def _renamed(state: dict[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """The same where two keys would be one: then it is no wrapper's name."""
    renamed = {rename(key): value for key, value in state.items()}
    return renamed if len(renamed) == len(state) else state


def target_layer(model: nn.Module) -> str:
    """The name of the default target layer, after the released code of Heo, Joo and Moon 2019.

    VGG: the last convolution; ResNet: the last block; DenseNet: the last dense layer; any other model: the last of its
    blocks (`BLOCKS`, `TOKEN_BLOCKS`), else its last convolution that stands in no gate (squeeze and excitation,
    attention). Raises `UserError` where there is none, and where tokens are mixed after it: the input of a patch
    embedding is the image.
    """
    modules = dict(model.named_modules())
    if isinstance(model, torch.fx.GraphModule):
        raise UserError("a GraphModule's blocks have lost their classes: name a target layer")
    blocks = [name for name, module in modules.items() if type(module).__name__ in BLOCKS + TOKEN_BLOCKS]
    if blocks:
        return blocks[-1]
    kinds = {kind for kind in map(type, modules.values()) if _is_gate(kind)}
    gates = tuple(f"{name}." for name, module in modules.items() if name and type(module) in kinds) if kinds else ()
    convolutions = [n for n, m in modules.items() if isinstance(m, nn.Conv2d) and not (gates and n.startswith(gates))]
    if not convolutions:
        raise UserError(f"{type(model).__name__} has no convolution: name a target layer")
    names = list(modules)
    after = [modules[name] for name in names[names.index(convolutions[-1]) + 1 :]]
    if (len(convolutions) == 1 and _is_patches(modules[convolutions[0]])) or any(map(_mixes_tokens, after)):
        raise UserError(
            f"{type(model).__name__} works on tokens after its last convolution ({convolutions[-1]!r}), which is no "
            "target layer: name one whose input is tokens, or maps"
        )
    return convolutions[-1]


@cache
def _is_gate(kind: type) -> bool:
    name = kind.__name__
    return any(word in name.lower() for word in GATES) or name.startswith(("SE", "ECA", "GC", "sSE", "cSE"))


def _is_patches(module: nn.Module) -> bool:
    """Whether a convolution cuts its input into patches that do not overlap."""
    return isinstance(module, nn.Conv2d) and module.kernel_size == module.stride and max(module.kernel_size) > 1


def _mixes_tokens(module: nn.Module) -> bool:
    """Whether it is an attention of tokens: one of channels has projections that change the width by another factor."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    if "attention" not in type(module).__name__.lower():
        return False
    widths = [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear)]
    return any(b in (a, 3 * a) for a, b in widths)
