"""What is made of an audit's units: every number against a case counted by hand, and a page that asks for nothing."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from attacks.errors import UserError
from benchmark.audit.findings import Audit, verdict
from benchmark.audit.page import page, sentences
from benchmark.audit.report import write
from benchmark.audit.state import State, Unit, read, units

EVIL = '<script>alert("x")</script>'
N = 8


def cell(name: str, success: int, null: int = 0, clean: int = 0, alike: float = 0.5) -> dict[str, np.ndarray]:
    """Scores of `N` images, of which so many are fooled."""
    counts = {"success": success, "null": null, "clean": clean}
    flags = {f"{name}.{key}": (np.arange(N) < count).astype(np.float32) for key, count in counts.items()}
    maps = np.random.default_rng(0).random((6, 4, 4)).astype(np.float32)
    rest = {"alike": np.full(N, alike, np.float32), "blank": np.zeros(N, np.float32), "maps": maps}
    return flags | {f"{name}.{key}": value for key, value in rest.items()}


def attack(way: str, attacked: str, cells: dict, lost: int = 0, status: str = "done") -> tuple[dict, Unit]:
    spec = {"kind": "attack", "fooling": "location", "way": way, "attacked": attacked}
    record = spec | {"status": status, "reason": "", "steps": 9, "wanted": 10, "allowed": 9, "converged": False}
    record |= {"seconds": 1.0, "evaluated": ["first", "second"]}
    predictions = {"right_clean": np.ones(N), "right": (np.arange(N) >= lost).astype(float), "moved": np.full(N, 0.25)}
    predictions["agree"] = predictions["right"]
    arrays = {name: array.astype(np.float32) for name, array in (cells | predictions).items()}
    return spec, Unit(record, arrays if status == "done" else {})


def honest(labelled: bool = True, **changes) -> tuple[dict, Unit]:
    about = {"model": f"net {EVIL}", "weights": "w", "data": "d", "preprocess": "p", "attacked": 8, "held": N}
    record = {"kind": "honest", "about": about | {"labelled": labelled}, "versions": {"torch": "2"}, "device": "cpu"}
    record |= {"settings": {"budget": 15.0, "minutes": 1, "seed": 0}, "interpreters": ["first", "second"]}
    record |= {"refusals": {"third": f"cannot {EVIL}"}}
    random = np.random.default_rng(1)
    arrays = {f"honest.{name}": random.random((6, 4, 4)).astype(np.float32) for name in ("first", "second")}
    arrays |= {"shown": random.integers(0, 255, (6, 3, 16, 16), np.uint8), "right": np.float32(np.arange(N) < 6)}
    return {"kind": "honest"}, Unit(record | changes, arrays)


def gate(name: str, aopc: float, control: bool = False) -> tuple[dict, Unit]:
    values = {"randomised": 0.1, "other_class": 0.1, "unrelated": 0.0}
    values |= {f"aopc_{fill}{read}": aopc for fill in ("noise", "mean", "blur") for read in ("", "_contrast")}
    record = {"kind": "gate", "interpreter": name, "control": control, "twin": {"correlation": [1.0] * N}}
    return {"kind": "gate", "name": name}, Unit(record | {"values": {k: [v] * N for k, v in values.items()}})


@pytest.fixture
def filled(tmp_path):
    def fill(*given, ended: bool = True) -> Audit:
        state, end = State(tmp_path / ".state", {"of": "this"}), {"kind": "end"}
        for spec, unit in [*given, *([(end, Unit(end))] if ended else [])]:
            state.add(spec, unit)
        return Audit.load(tmp_path / ".state")

    return fill


def everything() -> list[tuple[dict, Unit]]:
    shift = attack("head_shift", "first", cell("first", 7, null=2, clean=1, alike=0.1) | cell("second", 0, alike=0.9))
    deep = attack("gradient", "second", cell("first", 3, alike=0.4) | cell("second", 1, null=1, alike=0.7), lost=1)
    dear = attack("gentle", "second", cell("first", 8, alike=0.0) | cell("second", 8, alike=0.0), lost=2)
    return [honest(), shift, gate("first", 1.0), gate("second", 2.0), gate("control", 1.0, control=True), deep, dear]


def test_every_number_against_a_count_by_hand(filled):
    audit = filled(*everything())
    assert audit.top1 == 0.75
    by = audit.attacks.set_index(["way", "evaluated"])
    row = by.loc["head_shift", "first"]
    assert (row.fsr, row.chance, row.excess, row["drop"]) == (7 / 8, 2 / 8, (7 / 8 - 2 / 8) / (6 / 8), 0)
    assert row.low < row.fsr < row.high
    assert by.loc["gradient", "first"]["drop"] == 12.5
    assert by.loc["gradient", "first"].agreement == 7 / 8
    assert (by.loc["gradient", "first"].within, by.loc["gentle", "first"].within) == (True, False)
    first, second, third = audit.interpreters.to_dict("records")
    assert (first["verdict"], first["way"], first["attacked"], first["gate"]) == (
        "fooled",
        "head_shift",
        "first",
        "not passed",
    )
    assert first["free"] == (7 / 8 - 2 / 8) / (6 / 8)
    assert first["alike"] == pytest.approx(0.1)  # of what is over the budget nothing counts
    assert (second["verdict"], second["gate"], second["reason"]) == ("not fooled", "passed", "")
    assert second["alike"] == pytest.approx(0.7)
    assert (third["interpreter"], third["verdict"]) == ("third", "refused")
    assert audit.witness == "second"
    said = sentences(audit)
    assert said[0].startswith("first can be fooled: 88 % [")
    assert "by head shift, no probability changes; by chance 25 %" in said[0]
    assert said[-1] == (
        "The best witness is second: its maps moved least (rank correlation with the honest ones at least 0.70)."
    )


def test_without_labels_the_cost_is_what_the_network_decides_otherwise(filled):
    spec, unit = attack("gradient", "first", cell("first", 4) | cell("second", 0), lost=2)
    unit.arrays["right"][:] = 0
    audit = filled(honest(labelled=False), (spec, unit))
    assert set(audit.attacks["drop"]) == {25.0}
    spec, unit = attack("gradient", "first", cell("first", 4) | cell("second", 0))
    assert "gradient, at 0.0 points of top-1" in sentences(filled(honest(), (spec, unit)))[0]
    assert "gradient, at 0.0 % of the decisions changed" in sentences(filled(honest(labelled=False), (spec, unit)))[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "fooled"),
        ({"excess": 0.4}, "in part"),
        ({"low": 0.2}, "not fooled"),
        ({"low": 0.2, "alike": 0.49}, "moved"),
        ({"within": False}, "over budget"),
        ({"chance": 0.95, "low": 1.0}, "says nothing"),
        ({"status": "refused"}, "refused"),
    ],
)
def test_the_verdict_on_one_attack(changes, expected):
    assert (
        verdict({"status": "done", "chance": 0.2, "within": True, "low": 0.7, "excess": 0.8, "alike": 0.6} | changes)
        == expected
    )


def test_maps_that_moved_otherwise_than_was_meant_are_no_witness(filled):
    mild, wild = (cell("first", 0, alike=alike) | cell("second", 0, alike=0.9) for alike in (0.8, 0.2))
    audit = filled(honest(), attack("head_shift", "first", mild), attack("gradient", "first", wild))
    assert audit.interpreters.verdict.tolist() == ["moved", "not attacked itself", "refused"]
    assert audit.interpreters.way[0] == "gradient"
    assert "its maps moved (rank correlation with the honest ones 0.20)" in sentences(audit)[0]
    assert audit.witness is None


def test_nobody_is_a_witness_who_was_fooled_or_not_attacked(filled):
    cells = cell("first", 8, alike=0.1) | cell("second", 0, alike=0.9)
    audit = filled(honest(), attack("head_shift", "first", cells), attack("gradient", "second", {}, status="no time"))
    assert audit.witness is None
    assert audit.interpreters.verdict.tolist() == ["fooled", "not attacked itself", "refused"]


def test_an_audit_that_was_broken_off_names_no_witness(filled):
    audit = filled(*everything(), ended=False)
    assert audit.interpreters.verdict.tolist() == ["fooled", "not fooled", "refused"]
    assert (audit.witness, audit.ended) == (None, False)
    assert sentences(audit)[-1].startswith("No witness is named: the audit was broken off, ")


@pytest.mark.parametrize(("way", "verdict"), [("gradient", "attack refused"), ("head_shift", "not fooled")])
def test_who_refused_to_be_attacked_by_gradient_is_no_witness(filled, way, verdict):
    cells = cell("first", 0, alike=0.9) | cell("second", 8, alike=0.1)
    other = "head_shift" if way == "gradient" else "gradient"
    audit = filled(honest(), attack(other, "first", cells), attack(way, "first", {}, status="refused"))
    assert audit.interpreters.verdict[0] == verdict
    assert audit.witness == (None if way == "gradient" else "first")


class Looking(HTMLParser):
    """The tags and the addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.addresses, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]


def test_the_page_needs_nothing_outside_and_lets_nothing_foreign_in(filled, tmp_path):
    audit = filled(*everything())
    path = write(audit, tmp_path / "out")
    text = path.read_text()
    found = Looking(text)
    assert not {"script", "link", "iframe", "object", "form", "a"} & set(found.tags)
    assert not [name for name in found.attributes if name.startswith("on") or name == "style"]
    assert found.tags.count("img") == len(found.addresses) == 2 * 3 * 6 + 3  # three at a glance
    assert all(address.startswith("data:image/png;base64,") for address in found.addresses)
    assert EVIL not in text
    assert "&lt;script&gt;" in text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src &#x27;none&#x27;; img-src data:; style-src &#x27;sha256-")
    assert "prefers-color-scheme: dark" in text
    data = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert data["witness"] == "second"
    assert len(data["attacks"]) == 6
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "attacks.csv",
        "audit.html",
        "audit.json",
        "interpreters.csv",
    ]


def test_the_first_screen_has_both_maps_of_who_was_fooled(filled):
    _, *others = everything()  # in which the first was fooled and the second was not
    lead, _, rest = page(filled(honest(interpreters=["second", "first"]), *others)).partition("<section>")
    figure = re.search(r'<figure class="glance">(.*)</figure>', lead)[1]
    assert re.findall(r'alt="([a-z ]*)"', figure) == ["image", "honest map", "fooled map"]
    assert "<figcaption>first: location, head shift of first<" in figure
    below = rest[rest.index("<h3>first: ") :]
    assert re.findall(r'src="([^"]*)"', figure) == re.findall(r'src="([^"]*)"', below)[:18:6]


def test_the_first_screen_has_no_picture_where_nothing_was_attacked(filled):
    assert "<figure" not in page(filled(honest(), attack("head_shift", "first", {}, status="no time")))


def test_a_page_of_an_audit_that_had_no_time_says_so(filled):
    text = page(filled(honest(), attack("head_shift", "first", {}, status="no time")))
    assert "It was not asked: there was no time left." in text
    assert "No interpreter is a good witness" in text


def test_units_are_found_by_all_that_they_depend_on(tmp_path):
    state, spec = State(tmp_path, {"model": 1}), {"kind": "gate", "images": 3}
    state.add(spec, Unit({"a": 1}, {"b": np.arange(3)}))
    found = State(tmp_path, {"model": 1}).find(spec)
    assert (found.record, found.arrays["b"].tolist()) == ({"a": 1}, [0, 1, 2])
    assert State(tmp_path, {"model": 2}).find(spec) is None
    assert state.find(spec | {"images": 4}) is None
    [key] = json.loads((tmp_path / "course.json").read_text())
    (tmp_path / f"{key}.safetensors").write_bytes(b"no")
    assert state.find(spec) is None
    with pytest.raises(UserError, match="not what an audit writes"):
        units(tmp_path)


def test_a_link_in_the_place_of_a_unit_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text('{"kind": "honest"}')
    (tmp_path / f"{'a' * 64}.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="not what an audit writes"):
        read(tmp_path, "a" * 64)


@pytest.mark.parametrize("record", [{"kind": "honest"}, {"kind": 3}, {"kind": "honest", "about": [], "settings": 1}])
def test_what_no_audit_wrote_is_told_in_one_line(filled, record):
    with pytest.raises(UserError, match="not what an audit writes"):
        filled(({"kind": "honest"}, Unit(record)))
