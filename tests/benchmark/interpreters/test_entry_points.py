"""Interpreters of other packages: listed at once, imported on use, never in the place of a built-in one."""

import sys

import pytest

from attacks.errors import UserError
from benchmark import interpreters
from benchmark.interpreters import entry_points
from benchmark.interpreters.base import Interpreter
from benchmark.interpreters.lrp import LRP

SOURCE = """
from dataclasses import dataclass
from typing import ClassVar
from benchmark.interpreters.base import Interpreter

@dataclass(frozen=True)
class Good(Interpreter):
    name: ClassVar[str] = "zz_good"
    scale: float = 1.0

class Plain(Interpreter):
    name = "plain"

number = 3
"""


def install(folder, package, module, entries):
    """A distribution as pip leaves it, with one module and these entry points."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[foolbench.interpreters]", *lines, ""]))
    (folder / f"{module}.py").write_text(SOURCE)
    entry_points.registered.cache_clear()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for module in [name for name in sys.modules if name.startswith("foreign_interpreters")]:
        del sys.modules[module]
    entry_points.registered.cache_clear()


def test_a_registered_interpreter_is_listed_last_and_imported_on_use(folder):
    before = interpreters.names()
    install(folder, "foreign", "foreign_interpreters", {"zz_good": "foreign_interpreters:Good"})
    assert interpreters.names() == [*before, "zz_good"]
    assert "foreign_interpreters" not in sys.modules
    made = interpreters.create("zz_good", scale=2.0)
    assert isinstance(made, Interpreter)
    assert made.scale == 2.0
    assert interpreters.kind("zz_good") is type(made)
    with pytest.raises(UserError, match="unknown option of zz_good 'scalf': did you mean 'scale'"):
        interpreters.create("zz_good", scalf=2.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("foreign_interpreters:Absent", "cannot be imported: AttributeError"),
        ("foreign_interpreters_absent:Good", "cannot be imported: ModuleNotFoundError"),
        ("foreign_interpreters:number", "must be a dataclass and a subclass of Interpreter"),
        ("foreign_interpreters:SOURCE", "cannot be imported"),
        ("foreign_interpreters:Plain", "must be a dataclass"),
        ("foreign_interpreters:ClassVar", "must be a dataclass"),
    ],
)
def test_a_broken_entry_is_an_error_of_its_package_when_it_is_used(value, message, folder):
    install(folder, "broken-package", "foreign_interpreters", {"zz_bad": value})
    assert interpreters.names()[-1] == "zz_bad"
    assert isinstance(interpreters.create("lrp"), LRP)
    with pytest.raises(UserError, match=f"interpreter 'zz_bad' of package 'broken-package'.*{message}") as caught:
        interpreters.create("zz_bad")
    assert "\n" not in str(caught.value)


def test_a_built_in_name_is_never_shadowed(folder):
    before = interpreters.names()
    install(folder, "greedy", "foreign_interpreters", {"lrp": "foreign_interpreters:Good"})
    assert interpreters.names() == before
    with pytest.raises(UserError, match="interpreter 'lrp' of package 'greedy': the name is built in"):
        interpreters.create("lrp")
    assert "foreign_interpreters" not in sys.modules
    assert interpreters.create("grad_cam").name == "grad_cam"


def test_one_name_of_two_packages_names_both(folder):
    for package in ("first", "second"):
        install(folder, package, "foreign_interpreters", {"zz_good": "foreign_interpreters:Good"})
    assert interpreters.names().count("zz_good") == 1
    with pytest.raises(UserError, match=r"(first.*second|second.*first)"):
        interpreters.create("zz_good")


def test_an_unknown_name_suggests_a_registered_one(folder):
    install(folder, "foreign", "foreign_interpreters", {"zz_good": "foreign_interpreters:Good"})
    with pytest.raises(UserError, match="did you mean 'zz_good'"):
        interpreters.create("zz_goood")
