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
