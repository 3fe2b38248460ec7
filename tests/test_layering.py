"""Imports point one way, leaderboards and plots need no torch, and nothing reads a pickle or a tensor's `.data`."""

import ast
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import attacks
import benchmark

ROOT = Path(benchmark.__file__).parent.parent
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in (attacks, benchmark)
    for path in sorted(Path(package.__file__).parent.rglob("*.py"))
}
LIGHT = ["benchmark.leaderboards", "benchmark.figures", "benchmark.results", "benchmark.intervals", "attacks.errors"]
LIGHT += ["benchmark.dissection.figures", "benchmark.dissection.tables", "benchmark.experiments"]
LIGHT += ["benchmark.listing", "benchmark.submissions.template", "benchmark.main", "benchmark.ending"]
LIGHT += ["benchmark.metrics", "benchmark.leaderboards.show", "benchmark.figures.boards", "benchmark.figures.heatmaps"]
LIGHT += ["benchmark.figures.transfer", "benchmark.publishing", "benchmark.report.site", "benchmark.report.folder"]
LIGHT += ["benchmark.audit", "benchmark.audit.command", "benchmark.audit.listing"]
FLOORS = """
main
cli
detection audit
experiments dissection submissions keeping publishing
explain verify coverage report zoo
execution
entries
detectors defences
run cells
figures
leaderboards
results
suite
interpreters training
models
datasets metrics
intervals store ending beginning options listing sections committed
hosts
attacks
"""
"""The wings, the top floor first: what stands on one floor imports from lower ones, and from its own wing."""


def each_module(test: Callable[[str], None]) -> Callable[[], None]:
    """One test of all modules, which names each that fails: one for each would take longer to report than to run."""

    def of_all() -> None:
        failed = {}
        for module in SOURCES:
            try:
                test(module)
            except AssertionError as error:
                failed[module] = str(error)
        assert not failed, failed

    return of_all


@cache
def parsed(module: str) -> ast.AST:
    return ast.parse(SOURCES[module].read_text())


@cache
def nodes(module: str, at_import: bool) -> list[ast.AST]:
    """Every node of a module; with `at_import` those alone that run when it is imported."""
    found, waiting = list[ast.AST](), [parsed(module)]
    while waiting:
        for child in ast.iter_child_nodes(waiting.pop()):
            lazy = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            typing_only = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            if not at_import or not (lazy or typing_only):
                found.append(child)
                waiting.append(child)
    return found


def imports(module: str, at_import: bool = False) -> set[str]:
    """What a module imports, by full name; names imported from a package of ours are its modules where they are."""
    found = set()
    for node in nodes(module, at_import):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inner if name in SOURCES} or {str(node.module)}
    return found


def test_every_source_is_looked_at():
    assert {"attacks.foolings", "benchmark.cli", "benchmark.interpreters.lrp", "benchmark"} <= set(SOURCES)
    assert "attacks.heatmaps" in imports("attacks.foolings")
    assert "benchmark.execution.compute" in imports("benchmark.cli") - imports("benchmark.cli", at_import=True)


@pytest.mark.parametrize("module", [name for name in SOURCES if name.startswith("attacks")])
def test_attacks_imports_nothing_from_benchmark(module):
    assert not [name for name in imports(module) if name.split(".")[0] == "benchmark"]


def wing(module: str) -> str:
    return "attacks" if module.split(".")[0] == "attacks" else module.split(".")[1] if "." in module else ""


@each_module
def test_wings_import_downwards_only(module):
    floor = {name: number for number, line in enumerate(FLOORS.split("\n")) for name in line.split()}
    mine = wing(module)
    assert not mine or mine in floor, f"{module}: {mine} is on no floor"
    others = {wing(name) for name in imports(module) & set(SOURCES)} - {mine, ""}
    assert not [name for name in others if floor[name] <= floor.get(mine, 0)]


@each_module
def test_sources_import_no_tests_and_only_what_is_installed(module):
    allowed = {"attacks", "benchmark", "torch", "torchvision", "captum", "pandas", "numpy", "matplotlib", "sklearn"}
    allowed |= {"scipy", "safetensors", "pyarrow", "pydantic", "typer", "tqdm", "ray", "PIL", "jinja2"}
    assert {name.split(".")[0] for name in imports(module)} <= allowed | sys.stdlib_module_names


def test_ray_is_imported_by_its_engine_alone_and_when_it_is_asked_for():
    assert [name for name in SOURCES if "ray" in imports(name)] == ["benchmark.execution.ray_engine"]
    assert "ray" not in imports("benchmark.execution.ray_engine", at_import=True)


def test_no_module_imports_itself_through_others():
    graph = {name: imports(name) & set(SOURCES) for name in SOURCES}
    for name in graph:  # a package loads its own modules when they are asked for, and they may use its constants
        lazily = graph[name] - imports(name, at_import=True)
        graph[name] -= {other for other in lazily if other.startswith(f"{name}.")}
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        assert name not in path, f"cycle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def reachable(module: str) -> set[str]:
    """What importing a module imports, packages on the way included."""
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        parents = {name.rpartition(".")[0]} - {""}
        new = (imports(name, at_import=True) if name in SOURCES else set()) | parents
        waiting += [other for other in new if other not in found]
        found |= new
    return found


@pytest.mark.parametrize("module", LIGHT)
def test_what_draws_and_tabulates_reaches_no_torch(module):
    heavy = ("torch", "torchvision", "captum", "safetensors")
    assert not [name for name in reachable(module) if name.split(".")[0] in heavy]
    assert [name for name in reachable("benchmark.entries.scoring") if name == "torch"]


def test_in_fact_the_command_and_the_plots_start_without_torch():
    heavy = ("torch", "torchvision", "captum", "scipy", "sklearn")
    code = "import sys, benchmark.cli, benchmark.figures.boards, benchmark.leaderboards, attacks, benchmark.datasets\n"
    code += f"print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@each_module
def test_nothing_is_unpickled(module):
    assert not imports(module) & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for node in nodes(module, at_import=False):
        if isinstance(node, ast.Call):
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if ast.unparse(node.func) == "torch.load":
                assert options.get("weights_only") == "True", f"{module}:{node.lineno}"
            assert options.get("allow_pickle", "False") == "False", f"{module}:{node.lineno}"


@each_module
def test_tensors_are_not_changed_behind_autograds_back(module):
    found = [n for n in nodes(module, at_import=False) if isinstance(n, ast.Attribute) and n.attr == "data"]
    allowed = {"run.data", "self.data"}  # the folder of a run's dataset
    assert not [f"{module}:{n.lineno} {ast.unparse(n)}" for n in found if ast.unparse(n) not in allowed]


@each_module
def test_library_code_does_not_print(module):
    calls = [n for n in nodes(module, at_import=False) if isinstance(n, ast.Call)]
    printing = [call for call in calls if ast.unparse(call.func) == "print"]
    assert not printing or module == "benchmark.cli"
    assert all("file=sys.stderr" in ast.unparse(call) for call in printing)
