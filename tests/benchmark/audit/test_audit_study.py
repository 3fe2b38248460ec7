"""An audit from Python: what it finds on a small network, in which order, and that it leaves everything as it was."""

import copy

import numpy as np
import pytest
import torch
from audited import network, picture
from torch import nn

from attacks import foolings
from attacks.errors import Refused, UserError
from attacks.ranks import rank_correlation
from benchmark import audit, interpreters
from benchmark.audit import attack, gate
from benchmark.audit.attack import WAYS, Attacker, OutOfTime
from benchmark.audit.findings import Audit
from benchmark.audit.gate import CONTROLS, Gate
from benchmark.audit.network import logits
from benchmark.audit.notebook import taken
from benchmark.audit.page import sentences
from benchmark.audit.settings import Settings
from benchmark.submissions.wire import fingerprint

NAMES = ("grad_cam", "simple_grad_contrast")


class Pictures:
    """A data set of the network's images, as it takes them."""

    def __init__(self, count: int = 24) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        image = torch.from_numpy(picture(index % 2, index)).permute(2, 0, 1) / 255
        return (image - 0.5) / 0.25, index % 2


@pytest.fixture(scope="module")
def short():
    """Few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attack, "STEPS", {"head_shift": 12, "gradient": 8, "gentle": 6})
        patch.setattr(attack, "LEAST", dict.fromkeys(WAYS, 2))
        patch.setattr(gate, "CELLS", 4)
        yield


@pytest.fixture(scope="module")
def done(short, trained, tmp_path_factory):
    """A finished audit: its network, its folder, what it said and what it found."""
    model, out, said = copy.deepcopy(trained).train(), tmp_path_factory.mktemp("audit"), list[str]()
    model.features[0].eval()
    model.head.bias.requires_grad_(False)
    before, state = fingerprint(model), torch.get_rng_state()
    found = audit.run(model, Pictures(), NAMES, out=out, say=said.append, foolings=("location",))
    assert fingerprint(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    return model, out, said, found


def test_the_first_answer_is_a_head_shift_and_each_attack_is_seen_by_all(done):
    _, out, said, found = done
    assert said[0] == f"12 held-out images, 100.0 % of them right; {', '.join(NAMES)}"
    assert said[1].startswith("location, head_shift of grad_cam, ")
    assert found.top1 == 1
    shifts = found.attacks[found.attacks.way == "head_shift"]
    assert shifts[["attacked", "evaluated"]].values.tolist() == [[a, b] for a in NAMES for b in NAMES]
    assert set(found.attacks.way) >= {"head_shift", "gradient"}
    assert shifts.moved.max() < 1e-4
    assert (shifts["drop"] == 0).all()
    assert (out / "audit.html").is_file()
    assert Audit.load(out / ".state").attacks.equals(found.attacks)


def test_no_head_shift_moves_a_contrast(done):
    rows = done[3].attacks
    assert rows[(rows.way == "head_shift") & (rows.evaluated == "simple_grad_contrast")].alike.min() > 0.99


def test_the_gate_is_asked_of_each_beside_the_controls(done):
    rows = done[3].interpreters
    assert set(rows.gate) <= {"passed", "not passed"}
    assert rows.verdict.isin(["fooled", "in part", "moved", "not fooled"]).all()


def test_scores_are_those_of_maps_made_by_hand(done, short):
    """The head shift again, from nothing, and its maps beside the honest ones."""
    model, _, _, found = done
    photographs = taken(Pictures(), 200, 0)
    (images, targets), (held, held_targets) = photographs.attacked, photographs.held
    assert not (images[:, None] == held[None]).flatten(2).all(2).any()
    clean, grad_cam = copy.deepcopy(model).eval().requires_grad_(True), interpreters.create("grad_cam")
    attacker = Attacker(clean, images, targets, 1.0, 0, float("inf"))
    fooled = attacker.attack(grad_cam, foolings.create("location"), "head_shift", 600.0).result.model
    with torch.no_grad():
        before, after = grad_cam(clean, held, held_targets), grad_cam(fooled, held, held_targets)
    row = found.attacks.query("way == 'head_shift' and attacked == 'grad_cam' and evaluated == 'grad_cam'").iloc[0]
    border = torch.ones(after.shape[1:])
    border[1:-1, 1:-1] = 0
    errors = ((after - border) ** 2).mean((1, 2))
    assert row.fsr == (errors <= 0.2).float().mean()
    assert row.alike == pytest.approx(rank_correlation(before, after).nan_to_num(0).mean().item(), abs=1e-5)


def test_an_audit_that_is_run_again_goes_on_where_it_was(done, short, monkeypatch):
    model, out, _, found = done
    said: list[str] = []
    monkeypatch.setattr(Attacker, "attack", None)
    monkeypatch.setattr(Gate, "asked", None)
    again = audit.run(model, Pictures(), NAMES, out=out, say=said.append, foolings=("location",))
    assert again.attacks.equals(found.attacks)
    assert again.interpreters.equals(found.interpreters)
    assert all(text.endswith("as found before") for text in said[1:])


def test_where_there_is_no_time_nothing_is_begun_and_the_page_says_so(short, trained, tmp_path):
    said: list[str] = []
    found = audit.run(trained, Pictures(), ["grad_cam"], out=tmp_path, say=said.append, minutes=1e-4)
    assert set(found.attacks.status) == {"no time"}
    assert found.interpreters.verdict.tolist() == ["not attacked"]
    assert "the gate: no time left" in said
    assert "no time left" in (tmp_path / "audit.html").read_text()


@pytest.fixture
def failing(monkeypatch):
    """Fine-tuning against grad_cam raises the error."""
    own = Attacker.attack

    def fail(error: BaseException) -> None:
        def attack(self, interpreter, fooling, way, *rest):
            if (way, interpreter.name) == ("gradient", "grad_cam"):
                raise error
            return own(self, interpreter, fooling, way, *rest)

        monkeypatch.setattr(Attacker, "attack", attack)

    return fail


def test_an_attack_in_which_the_network_fails_is_refused_and_the_others_are_made(short, trained, failing):
    failing(RuntimeError("the derivative\nis not implemented"))
    found = audit.run(trained, Pictures(), NAMES, foolings=("location",))
    tuned = found.attacks[found.attacks.way == "gradient"].drop_duplicates("attacked").set_index("attacked")
    assert tuned.status.to_dict() == {"grad_cam": "refused", "simple_grad_contrast": "done"}
    assert tuned.reason["grad_cam"] == "the derivative is not implemented"
    assert found.ended
    assert found.witness != "grad_cam"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("CUDA out of memory")])
def test_an_audit_that_is_broken_off_names_no_witness(short, trained, tmp_path, failing, error):
    failing(error)
    with pytest.raises(type(error)):
        audit.run(trained, Pictures(), NAMES, out=tmp_path, foolings=("location",))
    found = Audit.load(tmp_path / ".state")
    assert set(found.attacks.way) == {"head_shift"}
    assert (found.ended, found.witness) == (False, None)


def test_an_attack_that_is_not_worth_beginning_is_not(short, trained):
    photographs = taken(Pictures(), 200, 0)
    attacker = Attacker(trained, *photographs.attacked, 1.0, 0, float("inf"))
    arguments = interpreters.create("grad_cam"), foolings.create("location"), "head_shift"
    with pytest.raises(OutOfTime):
        attacker.attack(*arguments, 0.0)
    with pytest.raises(OutOfTime):  # all that would come of it is there
        attacker.attack(*arguments, 1e-9, known=12)
    with pytest.raises(OutOfTime):
        Attacker(trained, *photographs.attacked, 1.0, 0, 0.0).attack(*arguments, 600.0)
    with pytest.raises(OutOfTime):  # nor do the least steps fit into all that is left
        attacker.attack(*arguments, -1.0, at_most=1e-9)
    assert attacker.attack(*arguments, -1.0, at_most=600.0).allowed == 2


def test_a_network_without_a_head_of_its_own_is_attacked_by_gradient_alone(short, trained):
    photographs = taken(Pictures(), 200, 0)
    model = nn.Sequential(copy.deepcopy(trained), nn.Softmax(1)).eval()
    attacker = Attacker(model, *photographs.attacked, 1.0, 0, float("inf"))
    arguments = interpreters.create("grad_cam"), foolings.create("location")
    with pytest.raises(Refused, match="Sequential has no such head"):
        attacker.attack(*arguments, "head_shift", 600.0)
    assert attacker.attack(*arguments, "gradient", 600.0).result.status == "done"


def staged(trained: nn.Module) -> nn.Module:
    """Its features and its head, with a block between them that can be cut off."""
    block = [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    return nn.Sequential(trained.features, *block, trained.head).eval()


def test_of_a_large_network_what_lies_below_is_computed_once(short, trained, monkeypatch):
    photographs = taken(Pictures(), 200, 0)
    model = staged(trained)
    grad_cam, location = interpreters.create("grad_cam", layer="1"), foolings.create("location")
    fooled = {}
    for large in (1000, 16):  # pixels: of the pictures' 32
        monkeypatch.setattr(attack, "LARGE", large)
        attacker = Attacker(model, *photographs.attacked, 1.0, 0, float("inf"))
        monkeypatch.setattr(Attacker, "recipe", lambda self, *_: attack.Recipe(0.3, 0.0, 12, 8))
        fooled[large] = attacker.attack(grad_cam, location, "head_shift", 600.0).result.model
        monkeypatch.undo()
        assert attacker.cuts == {("grad_cam", "head"): "1" if large == 16 else ""}
    weights, others = ([*model.parameters()] for model in fooled.values())
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(weights, others, strict=True))


@pytest.mark.parametrize("name", ["grad_cam", "simple_grad"])
def test_of_a_large_network_the_last_block_alone_moves_for_maps_of_a_layer(short, trained, monkeypatch, name):
    monkeypatch.setattr(attack, "LARGE", 16)
    photographs = taken(Pictures(), 200, 0)
    model = staged(trained)
    interpreter = interpreters.create(name, **({"layer": "1"} if name == "grad_cam" else {}))
    attacker = Attacker(model, *photographs.attacked, 1.0, 0, float("inf"))
    made = attacker.attack(interpreter, foolings.create("location"), "gradient", 600.0)
    assert made.result.status == "done"
    assert (attacker.recipe("gradient", interpreter).scope == "last_block") == (name == "grad_cam")
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), made.result.model.parameters(), strict=True)]
    assert any(moved[4:])
    assert any(moved[:4]) == (name == "simple_grad")


def test_a_network_that_cannot_be_cut_is_attacked_whole(short, trained, monkeypatch):
    monkeypatch.setattr(attack, "LARGE", 16)
    photographs = taken(Pictures(), 200, 0)
    grad_cam = interpreters.create("grad_cam", layer="features.2")
    attacker = Attacker(trained, *photographs.attacked, 1.0, 0, float("inf"))
    monkeypatch.setattr(attack, "check_cut", lambda *_: 1 / 0)
    assert attacker.attack(grad_cam, foolings.create("location"), "gradient", 600.0).result.status == "done"
    assert set(attacker.cuts.values()) == {""}


def test_the_gate_takes_as_many_images_as_there_is_time_for():
    cells = gate.CELLS
    cost = (cells + 1) * 3 * 0.01 + 6 * 0.1  # of one image: a forward pass for each cell and fill, and six maps
    assert Gate.planned(10 * cost + 0.01, 0.01, [0.1], 100) == (10, cells)
    assert Gate.planned(1e9, 0.01, [0.1], 20) == (20, cells)
    half = (cells // 2 + 1) * 3 * 0.01 + 0.6
    assert Gate.planned(6 * half + 0.01, 0.01, [0.1], 100) == (6, cells // 2)
    assert Gate.planned(1.0, 0.01, [0.1], 100) is None
    assert {"random", "constant"} <= set(CONTROLS)


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (5, {}, "dataset must have a length (got int)"),
        (Pictures(4), {}, "dataset must hold at least 8 different images (got 4)"),
        ([(torch.zeros(3, 8, 8), 0)] * 20, {}, "dataset must hold at least 8 different images (got 1)"),
        (
            [(torch.full((3, 8, 8), float(i)), 1) for i in range(9)],
            {},
            "dataset must give images of at least two classes",
        ),
        (
            [(torch.zeros(3, 8), 0)],
            {},
            "dataset must give (image (C, H, W) as a tensor, class index) (item 0 is none): got Tensor (3, 8), int",
        ),
        *[
            (
                [(torch.zeros(3, 8, 8), label)],
                {},
                f"dataset must give one class index for each image (item 0 has {label!r}): 0, 1, ...",
            )
            for label in ([1, 2], 1.7, float("inf"), float("nan"), -1, 10**30, None, torch.ones(3))
        ],
        (
            [(torch.zeros(3, 8, 8).byte(), 1)],
            {},
            "dataset must give images as the network takes them, of floating point",
        ),
        (
            torch.utils.data.DataLoader([0]),
            {},
            "dataset must give its items by their index (DataLoader failed at 0: Typ",
        ),
        (
            torch.utils.data.DataLoader([(torch.zeros(3, 8, 8), 0)]),
            {},
            "dataset must give its items by their index (DataLoader failed at 0: TypeError: 'DataLoader' object is not "
            "subscriptable): give that which it loads, its `dataset`",
        ),
        (
            [torch.full((3, 8, 8), 1.0 * i) if i % 2 else (torch.full((3, 8, 8), 1.0 * i), 1) for i in range(9)],
            {},
            "dataset must give a class index with every image, or with none",
        ),
        ({"image": 1}, {}, "dataset must give its items by their index (dict failed at 0: KeyError: 0)"),
        (Pictures(), {"layer": "featurez.2"}, "unknown layer 'featurez.2': did you mean 'features.2'? allowed: "),
        (Pictures(), {"minutes": 0}, "--minutes must be a number above 0 (got 0)"),
        (Pictures(), {"budget": float("nan")}, "--budget must be a number above 0 (got nan)"),
        (Pictures(), {"images": 4}, "--images must be 8 to 2000 (got 4)"),
        (Pictures(), {"images": 20.5}, "--images must be 8 to 2000 (got 20.5)"),
        (Pictures(), {"minutes": "3"}, "--minutes must be a number above 0 (got '3')"),
        (Pictures(), {"minute": 3}, "unknown option of an audit 'minute': did you mean 'minutes'?"),
        (Pictures(), {"interpreters": "grad_cam"}, "--interpreters must be a list of names (got 'grad_cam')"),
        (Pictures(), {"interpreters": network}, "--interpreters must be a list of names (got <function network"),
        (Pictures(), {"foolings": "location"}, "--foolings must be a list of names (got 'location')"),
        (Pictures(), {"layer": 3}, "--layer must be the name of a layer (got int)"),
        (Pictures(), {"device": "gpu"}, "device 'gpu' cannot be computed on (Expected one of cpu"),
        (Pictures(), {"device": "meta"}, "device 'meta' cannot be computed on"),
        (Pictures(), {"out": __file__}, f"cannot write into {__file__}: {__file__} is a file"),
        (Pictures(), {"foolings": ("active",)}, "unknown fooling of an audit 'active'"),
        (Pictures(), {"interpreters": ()}, "--interpreters must name at least one, and none twice"),
        (Pictures(), {"foolings": ()}, "--foolings must name at least one, and none twice"),
        (Pictures(), {"seed": 1.5}, "--seed must be 0 to 2147483647 (got 1.5)"),
        (Pictures(), {"seed": -1}, "--seed must be 0 to 2147483647 (got -1)"),
        (
            Pictures(),
            {"interpreters": ["simple_grad"], "layer": "head"},
            "--layer head: none of simple_grad looks at a",
        ),
        (Pictures(), {"interpreters": ["lrp_x"]}, "unknown interpreter 'lrp_x': did you mean"),
    ],
)
def test_what_cannot_be_audited_is_told_in_one_line(dataset, options, message):
    with pytest.raises(UserError) as caught:
        audit.run(network(), dataset, **{"interpreters": ["grad_cam"], **options})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [True, False])
def test_a_network_that_is_right_no_more_than_by_guessing_is_told_of_first(trained, kept):
    """Where nothing is right, nothing can be lost, and every attack is within the budget."""
    images = Pictures() if kept else [(image, 1 - label) for image, label in map(Pictures().__getitem__, range(24))]
    said: list[str] = []
    found = audit.run(trained, images, ["simple_grad"], minutes=1e-6, say=said.append)
    doubt = "The network is right on 0 of 12 held-out images, no more than by guessing: are "
    assert (found.top1, sentences(found)[0].startswith(doubt), said[0].startswith(doubt)) == (kept, not kept, not kept)


@pytest.mark.parametrize("form", [list, torch.stack, lambda x: torch.utils.data.TensorDataset(torch.stack(x))])
def test_images_without_labels_are_explained_by_what_the_network_predicts(trained, form):
    images = [Pictures()[i][0] for i in range(24)]
    found = audit.run(trained, form(images), ["simple_grad"], minutes=1e-6)
    with_labels = audit.run(trained, Pictures(), ["simple_grad"], minutes=1e-6)
    assert (found.about["labelled"], with_labels.about["labelled"]) == (False, True)
    assert (found.top1, with_labels.top1) == (1.0, 1.0)  # so that its predictions are the labels
    assert np.array_equal(found.arrays["honest.simple_grad"], with_labels.arrays["honest.simple_grad"])


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_network_whose_weights_hang_on_a_graph_is_audited(trained):
    model = copy.deepcopy(trained)
    model.head = torch.nn.utils.weight_norm(model.head)
    model(Pictures()[0][0][None])
    assert model.head.weight.grad_fn is not None
    assert audit.run(model, Pictures(), ["simple_grad"], minutes=1e-6).top1 == 1.0


def test_a_network_that_sees_one_class_only_is_refused():
    model = network()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([1.0, 0.0]))
    images = torch.stack([Pictures()[i][0] for i in range(12)])
    assert set(logits(model, images, 5).argmax(1).tolist()) == {0}
    from benchmark.audit.study import Photographs
    from benchmark.audit.study import audit as study

    with pytest.raises(
        UserError, match=r"^Net sees one class only in the held-out images \(class 0\): what fooling costs"
    ):
        study(model, Photographs((images[6:], None), (images[:6], None), images[:6]), Settings(), None, {}, str)
