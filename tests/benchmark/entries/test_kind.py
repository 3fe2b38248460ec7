"""A kind's key holds its code and the keys of what it needs; an entry is made once, needs first, and may be void."""

import pickle
from dataclasses import replace

import pytest
from closure import superfluous, undeclared

from attacks.errors import Refused, UserError
from benchmark import suite
from benchmark.entries import kind as kinds
from benchmark.entries.kind import Entry, Kind, Void, make_unit
from benchmark.execution.compute import KINDS, graph
from benchmark.run import Run, remembered, shared
from benchmark.store import source_digest, sources

MADE: list[str] = []


def make(run, place, inputs, folder):
    MADE.append(place)
    if place.startswith("refuses"):
        raise Refused(f"{place}: not on this network")
    if place.startswith("raises"):
        raise ZeroDivisionError("no luck")
    read = "".join(path.joinpath("text").read_text() for path in inputs.values())
    (folder / "text").write_text(f"{place}({read})")


def parent(run, place):
    return {"parent": Entry(PARENTS, place.removeprefix("raises ").removeprefix("child of "))}


PARENTS = Kind("parents", "parent", make, lambda run, place: {"place": place}, ("attacks.errors",), may_refuse=True)
CHILDREN = Kind(
    "children",
    "",
    make,
    lambda run, place: {"raises": place.startswith("raises")},
    ("attacks.errors",),
    needs=parent,
    after=lambda run, place: [Entry(PARENTS, "b")],
    together=lambda place: Entry(CHILDREN, place.removeprefix("raises ")),
)


@pytest.fixture
def run(tmp_path) -> Run:
    MADE.clear()
    return Run(suite.load("smoke"), str(tmp_path))


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_all_that_a_kind_computes_with_is_in_its_key(kind):
    assert undeclared(kind) == []
    assert superfluous(kind) == []


def test_an_entry_is_made_once_and_what_it_needs_first(run):
    child = Entry(CHILDREN, "child of a")
    assert child.missing(run)
    for _ in range(2):
        assert (child.get(run) / "text").read_text() == "child of a(a())"
    assert MADE == ["a", "child of a"]
    assert not child.missing(run)
    assert Entry(PARENTS, "a").receipt(run)["spec"]["place"] == "a"


def test_a_key_changes_with_the_needs_with_the_code_and_with_what_the_kind_says(run, monkeypatch):
    def key(place, **changes):
        return Entry(CHILDREN, place).key(replace(run, **changes))

    assert key("child of a") != key("child of b")  # its own facts are none: the parent's key makes the difference
    assert key("child of a") == key("child of a", store="elsewhere")
    before = key("child of a")
    threads = run.suite.model_copy(update={"threads": run.suite.threads + 1})
    assert key("child of a", suite=threads) != before
    monkeypatch.setattr(kinds, "source_digest", lambda code: "another")
    assert key("child of a") != before


def test_the_code_of_a_package_is_that_of_all_its_modules():
    names = sources(("benchmark.metrics", "attacks.errors"))
    assert {"benchmark.metrics", "benchmark.metrics.similarity", "attacks.errors"} <= names.keys()
    assert source_digest(("attacks.errors",)) != source_digest(("attacks.errors", "attacks.modes"))
    assert source_digest(("attacks.errors", "attacks.modes")) == source_digest(("attacks.modes", "attacks.errors"))


def test_a_refusal_is_asked_once_and_makes_void_what_needs_it(run):
    child = Entry(CHILDREN, "child of refuses")
    assert child.missing(run)
    make_unit(run, (child,))
    assert MADE == ["refuses"]
    assert child.void(run) == "refuses: not on this network"
    assert not child.missing(run)
    make_unit(run, (child,))
    with pytest.raises(Void, match="not on this network"):
        child.get(run)
    assert MADE == ["refuses"]
    with pytest.raises(Refused):  # of a kind that may not
        Entry(replace(PARENTS, name="strict", may_refuse=False), "refuses").get(run)


def test_one_entry_that_fails_costs_the_others_of_its_unit_nothing(run):
    bad, good = Entry(CHILDREN, "raises child of a"), Entry(CHILDREN, "child of a")
    with pytest.raises(UserError, match=r"^children: ZeroDivisionError: no luck$"):
        make_unit(run, (bad, good))
    assert bad.missing(run)
    assert not good.missing(run)
    with pytest.raises(ZeroDivisionError):  # alone, in its own words
        make_unit(run, (bad,))


def test_units_come_in_order_and_know_what_all_of_them_wait_for(run):
    first, second, raising = (Entry(CHILDREN, place) for place in ("child of a", "child of b", "raises child of b"))
    parents = [Entry(PARENTS, name) for name in "abc"]
    units, needs, after = graph(run, [*parents, first, second, raising])
    assert [(name, args[1]) for name, _, args in units] == [
        *((f"parent {entry.place}", (entry,)) for entry in parents),
        ("child of a", (first,)),
        ("child of b", (second, raising)),
    ]
    assert sorted(needs["child of a"]) == sorted(after["child of a"]) == ["parent a", "parent b"]
    assert needs["child of b"] == ["parent b"]
    Entry(PARENTS, "b").get(run)
    units, needs, _ = graph(run, [*parents, first])
    assert [name for name, *_ in units] == ["parent a", "parent c", "child of a"]
    assert needs["child of a"] == ["parent a"]


def test_entries_travel_by_the_names_of_their_kinds():
    entry = Entry(CHILDREN, "child of a")
    again = pickle.loads(pickle.dumps(entry))
    assert again == entry
    assert again.kind is CHILDREN
    for kind in KINDS:
        assert pickle.loads(pickle.dumps(kind)) is kind


def test_what_a_unit_shares_is_gone_with_it(run):
    calls = []

    @remembered
    def always(run, place):
        calls.append(place)

    @shared
    def once_a_unit(run, place):
        calls.append(f"shared {place}")

    for _ in range(2):
        for _ in range(2):
            always(run, "a")
            once_a_unit(run, "a")
        make_unit(run, (Entry(PARENTS, "a"),))
    assert calls == ["a", "shared a", "shared a"]
