"""The public door of `attacks`: each name once, for Python as for a type checker, and no torch until one is used."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import attacks


def test_a_type_checker_sees_the_names_that_python_finds_in_the_same_modules():
    tree = ast.parse(Path(attacks.__file__).read_text())
    seen = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "attacks." in str(node.module)]
    pairs = [(node.module.removeprefix("attacks."), alias.name) for node in seen for alias in node.names]
    assert pairs == [(module, name) for module, names in attacks._NAMES.items() for name in names]
    assert attacks.__all__ == sorted(name for _, name in pairs)
    assert len(set(attacks.__all__)) == len(pairs)


@pytest.mark.parametrize("name", attacks.__all__)
def test_each_name_is_that_of_its_module_and_no_modules_own(name):
    found = getattr(attacks, name)
    assert found.__module__ == f"attacks.{attacks._HOME[name]}"
    assert found is getattr(import_module(found.__module__), name)
    assert not (Path(attacks.__file__).parent / f"{name}.py").exists(), "once imported, the module would hide it"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'attacks' has no attribute 'minimum_nrom'"):
        attacks.minimum_nrom  # noqa: B018


def test_the_door_opens_without_torch_and_gives_all_names():
    code = "import sys, attacks; print('torch' in sys.modules)\nfrom attacks import *; print(minimum_norm.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\nminimum_norm\n", "")
