"""Checkpoints: what is read, and that foreign bytes are refused in one line and never run."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from attacks.errors import UserError
from benchmark import models
from benchmark.models import zoo


class Bomb:
    """A pickle that, when it is loaded as one, writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return models.create("compact_vgg", num_classes=3).state_dict()


def _saved(state: dict, path: Path) -> Path:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def _equal(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_is_read_also_when_it_was_saved_in_parallel(tmp_path, state, suffix, prefix):
    path = _saved({f"{prefix}{name}": value for name, value in state.items()}, tmp_path / f"model{suffix}")
    assert _equal(models.create("compact_vgg", weights=str(path), num_classes=3), state)


def test_a_state_dict_inside_a_training_checkpoint_is_found(tmp_path, state):
    path = _saved({"state_dict": state, "epoch": 3}, tmp_path / "model.pt")
    assert _equal(models.create("compact_vgg", weights=str(path), num_classes=3), state)


def test_a_torchvision_model_reads_a_checkpoint_with_its_own_number_of_classes(tmp_path):
    state = zoo.squeezenet1_1(num_classes=4).state_dict()
    path = _saved(state, tmp_path / "model.safetensors")
    assert _equal(models.create("squeezenet1_1", weights=str(path), num_classes=4), state)
    with pytest.raises(UserError, match=r"does not fit SqueezeNet: .*size mismatch for classifier.1.weight"):
        models.create("squeezenet1_1", weights=str(path))


def _truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_missing_or_truncated_checkpoint_is_named(tmp_path, state, suffix):
    path = tmp_path / f"model{suffix}"
    with pytest.raises(UserError, match=f"checkpoint not found: {path}"):
        models.create("compact_vgg", weights=str(path), num_classes=3)
    _truncate(_saved(state, path))
    with pytest.raises(UserError, match=f"checkpoint {path} does not fit VGG: ") as caught:
        models.create("compact_vgg", weights=str(path), num_classes=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state | {"foreign.weight": torch.ones(1)}, 'Unexpected key.*"foreign.weight"'),
        (lambda state: dict(list(state.items())[1:]), 'Missing key.*"features.0.weight"'),
        (lambda state: {}, "Missing key"),
        (lambda state: state | {"epoch": 3}, "holds no state_dict"),
        (lambda state: [1, 2], "holds no state_dict"),
        (lambda state: {0: torch.ones(1)}, "does not fit"),
    ],
    ids=["foreign key", "missing key", "empty", "not a tensor", "not a dictionary", "keys without a name"],
)
def test_a_foreign_checkpoint_says_what_is_foreign(tmp_path, state, change, message):
    path = _saved(change(state), tmp_path / "model.pth")
    with pytest.raises(UserError, match=message):
        models.create("compact_vgg", weights=str(path), num_classes=3)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, write, name):
    path, mark = tmp_path / name, tmp_path / "executed"
    write({"weight": Bomb(mark)}, path)
    with pytest.raises(UserError, match="does not fit"):
        models.create("compact_vgg", weights=str(path), num_classes=3)
    assert not mark.exists()
    if path.suffix == ".pth":
        torch.load(path, weights_only=False) if write is torch.save else pickle.loads(path.read_bytes())
        assert mark.exists()  # the bomb was live


@pytest.fixture
def cached(tmp_path, monkeypatch) -> Path:
    """Where torchvision keeps SqueezeNet's weights: here, a folder of this test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    path.parent.mkdir(parents=True)
    return path


def test_torchvisions_weights_are_read_from_its_cache(cached):
    state = zoo.squeezenet1_1().state_dict()
    torch.save(state, cached)
    assert _equal(models.create("squeezenet1_1", weights="IMAGENET1K_V1"), state)


def test_torchvisions_cache_is_not_unpickled_and_its_damage_is_one_line(cached, tmp_path):
    mark = tmp_path / "executed"
    torch.save({"weight": Bomb(mark)}, cached)
    with pytest.raises(UserError, match="weights 'DEFAULT' of 'squeezenet1_1' could not be loaded: "):
        models.create("squeezenet1_1", weights="DEFAULT")
    assert not mark.exists()
    torch.save(zoo.squeezenet1_1().state_dict(), cached)
    _truncate(cached)
    with pytest.raises(UserError, match="could not be loaded: ") as caught:
        models.create("squeezenet1_1", weights="DEFAULT")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrapper", [None, *models.WRAPPERS])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "model.", "model._orig_mod.module.", "net."])
def test_what_training_wraps_around_is_taken_off(tmp_path, state, wrapper, prefix):
    named = {f"{prefix}{key}": value for key, value in state.items()}
    path = _saved(
        named if wrapper is None else {wrapper: named, "epoch": 3, "optimizer": {"lr": 1.0}}, tmp_path / "a.pth"
    )
    assert _equal(models.create("compact_vgg", weights=str(path), num_classes=3), state)


def test_an_average_a_wrapped_part_and_old_counters(tmp_path, state):
    average = {"n_averaged": torch.tensor(5), **{f"module.{key}": value for key, value in state.items()}}
    parts = {key.replace("features.", "features.module._orig_mod."): value for key, value in state.items()}
    old = {key: value for key, value in state.items() if "num_batches" not in key}
    both = {"model": {"state_dict": state}, "ema": {key: value + 1 for key, value in state.items()}}
    for i, saved in enumerate((average, parts, old, both)):
        path = _saved(saved, tmp_path / f"{i}.pth")
        assert _equal(models.create("compact_vgg", weights=str(path), num_classes=3), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: {f"vgg.{key}": value for key, value in state.items()},
            "Missing key(s): 34 of 39, first \"features.0.weight\", where it has 'vgg.features.0.weight'; "
            'Unexpected key(s): 39 of 39, first "vgg.features.0.weight"',
        ),
        (
            lambda state: state | {"classifier.3.bias": torch.ones(7), "classifier.3.weight": torch.ones(7, 128)},
            "size mismatch for classifier.3.bias: the checkpoint's is (7,), the model's is (3,) and 1 more",
        ),
        (
            lambda state: state | {"classifier.3.bias": torch.ones(3, dtype=torch.int8)},
            "type mismatch for classifier.3.bias: the checkpoint's is torch.int8, the model's is torch.float32",
        ),
        (
            lambda state: state | {"classifier.3.bias": torch.tensor([0.0, float("nan"), 1.0])},
            "'classifier.3.bias' must be finite (it has NaN or infinities: did it diverge?)",
        ),
        (lambda state: state | {"epoch": 3}, "holds no state_dict: 'epoch' is no tensor but int; allowed are tensors"),
    ],
)
def test_the_shape_of_the_difference_is_one_short_line(tmp_path, state, change, message):
    path = _saved(change(state), tmp_path / "model.pth")
    with pytest.raises(UserError) as caught:
        models.create("compact_vgg", weights=str(path), num_classes=3)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))
    assert "\n" not in str(caught.value)


def test_nothing_advises_to_unpickle(tmp_path):
    torch.save({"weight": Bomb(tmp_path)}, tmp_path / "model.pth")
    with pytest.raises(UserError) as caught:
        models.create("compact_vgg", weights=str(tmp_path / "model.pth"), num_classes=3)
    assert "weights_only" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_weights_that_are_there_are_named_where_others_cannot_be_had(cached, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    torch.save(zoo.squeezenet1_0().state_dict(), cached.parent / "resnet50-0676ba61.pth")
    with pytest.raises(UserError, match=r"no network; in .*checkpoints are IMAGENET1K_V1$"):
        models.create("resnet50", weights="IMAGENET1K_V2")
    with pytest.raises(UserError, match=r"no network; .*checkpoints has none of its weights$"):
        models.create("squeezenet1_1", weights="DEFAULT")
