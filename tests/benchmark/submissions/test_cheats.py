"""Files that cheat or harm (`cheats/`): each ends without a rank, with its reason, and nothing of it stays behind."""

import copy
import os
import platform
import re
import tempfile
import time
from pathlib import Path

import pytest
import torch

from attacks import Location, Recipe
from attacks.errors import UserError
from benchmark import datasets, interpreters
from benchmark.leaderboards import ranking
from benchmark.leaderboards.cells import Cell
from benchmark.leaderboards.progress import stuck
from benchmark.submissions import checks, confine, seccomp, submit
from benchmark.submissions.checks.setting import make_cases
from benchmark.submissions.child import Child
from benchmark.submissions.remote import remote
from benchmark.submissions.submission import Limits, parse

pytestmark = pytest.mark.usefixtures("temporary")
landlock = pytest.mark.skipif(not confine.landlock(), reason="needs Linux with Landlock")

CHEATS = Path(__file__).parent / "cheats"
RECIPE = Recipe(1e-3, 1.0, 3, 4)


def submission(name: str, symbol: str = ""):
    return parse(f"{CHEATS / name}.py:{symbol or name}")


@pytest.fixture(scope="module")
def two(model):
    """The model, and another one with its buffers, to the bit."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return model, other


@pytest.fixture(scope="module")
def data():
    return datasets.create("shapes", size=8, input_size=32)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("name", "symbol"), [("frozen_in_memory", "FrozenInMemory"), ("frozen_in_any_file", "")])
def test_what_is_kept_of_one_model_is_not_there_for_the_next(name, symbol, two, batch):
    own = interpreters.create("simple_grad")
    made = remote(submission(name, symbol))
    for each in two:
        torch.testing.assert_close(made(each, *batch), own(each, *batch).detach(), atol=1e-5, rtol=1e-4)


@landlock
def test_no_file_is_left_anywhere(two, batch):
    with Child(submission("frozen_in_any_file")) as child:
        child.heatmaps(two[0], *batch)
        folder = Path(child._process.folder)
        assert (folder / "foolbench-cheat.pt").exists(), "it may write into its own folder"
    for place in (folder, CHEATS, *map(Path, ("/tmp", "/var/tmp", "/dev/shm", tempfile.gettempdir()))):
        assert not (place / "foolbench-cheat.pt").exists()


@pytest.mark.parametrize(
    ("name", "symbol", "status", "reason"),
    [
        ("frozen_in_memory", "FrozenInMemory", "done",
         r"its maps of the fooled model hang on the models that its process knew before \(correlation \S+\)"),
        ("replaced_manipulation", "ReplacedManipulation", "no_progress", "the weights came back as they went"),
        ("replaced_manipulation", "NudgedManipulation", "done",
         r"the fooling loss was (0\.\d+) before and \1 after, on 8 images"),
    ],
)  # fmt: skip
def test_an_attack_that_was_kept_from_its_end_is_not_ranked(name, symbol, status, reason, two, data):
    made = remote(submission(name, symbol))
    fooled = made.manipulate(two[0], Location(), data, RECIPE, 5)
    assert fooled.status == status
    assert re.fullmatch(f"NO_PROGRESS: {reason}", fooled.reason)
    assert fooled.history["fooling"][-1] < fooled.history["fooling"][0] or name == "frozen_in_memory"
    assert bool(fooled.weights) == (status == "done")
    row = {"model": "m", "fooling": "location", "attacked": made.name, "seed": 0, "steps": 3, "status": fooled.status}
    cell = Cell(row | {"reason": fooled.reason}, made.name)
    why = stuck(made.name, [cell], [cell.manipulation])
    assert why.startswith("NO_PROGRESS: attacked by its own gradient, ")
    gate = {"m": {key: [0.0] for key in ("randomised", "other_class", "unrelated")}}
    gate["m"] |= {f"aopc_{fill}{end}": [1.0, 1.0] for fill in ranking.FILLS for end in ("", "_contrast")}
    assert ranking.eligibility(made.name, {made.name: {"gate": gate}}, ["m"], []) == (True, "")
    assert ranking.eligibility(made.name, {made.name: {"gate": gate}}, ["m"], [], why) == (False, why)


def test_an_attack_that_was_made_to_diverge_is_not_ranked(two, data):
    made = remote(submission("not_finite_when_attacked", "NotFiniteWhenAttacked"))
    fooled = made.manipulate(two[0], Location(), data, RECIPE, 5)
    assert (fooled.status, fooled.weights) == ("diverged", {})
    row = {"model": "m", "fooling": "location", "attacked": made.name, "seed": 0, "steps": 3, "status": fooled.status}
    cell = Cell(row | {"reason": fooled.reason}, made.name)
    why = "attacked by its own gradient, the fooling loss did not fall in 1 of 1 places, first m/location"
    assert stuck(made.name, [cell], [cell.manipulation]) == f"NO_PROGRESS: {why}"


def test_an_honest_attack_is_progress_and_no_step_is_none(gradient, two, data):
    made = remote(gradient)
    fooled = made.manipulate(two[0], Location(), data, Recipe(1e-3, 100.0, 12, 8), 5)
    assert (fooled.status, fooled.reason) == ("done", "")
    asked = made.manipulate(two[0], Location(), data, Recipe(1e-3, 1.0, 0, 8), 5)
    assert (asked.status, asked.reason) == ("done", "")


@pytest.fixture
def one_network(monkeypatch):
    """The checks ask about one network: they do so in this process."""
    (case,) = [case for case in make_cases("cpu") if case.name == "compact_resnet"]
    monkeypatch.setattr(checks, "make_cases", lambda device: [case])


def test_checks_that_were_forged_are_not_believed(one_network):
    said: list[str] = []
    failed = "differs by class, depends on the image, depends on the weights"
    with pytest.raises(UserError, match=rf"^forged_checks: 3 check\(s\) failed: {failed}$"):
        submit.check(remote(submission("forged_checks", "ForgedChecks")), "cpu", said.append)
    (gradient,) = [line for line in said if "gradient by the weights" in line]
    assert gradient.startswith("FAILED  gradient by the weights: on compact_resnet: autograd's derivative")


def test_a_map_that_cannot_be_fooled_for_its_pedestal_is_not_scored(one_network):
    with pytest.raises(UserError, match=r"^pedestal: 1 check\(s\) failed: leaves room to be fooled$"):
        submit.check(remote(submission("pedestal", "Pedestal")), "cpu", str)


def test_findings_come_one_by_one_from_a_process_that_nothing_else_is_asked(one_network, gradient, model, batch):
    with Child(gradient) as child:
        found = child.checks()
        assert next(found) == ("heatmaps of shape (N, h, w)", True, "", "error")
        assert next(found).check == "finite"
        child.close()
        with pytest.raises(UserError, match=r"^submission mine\.py:PlainGradient: its process was closed$"):
            next(found)


def test_all_findings_together_have_one_time_limit(one_network):
    message = r"^submission takes_its_time\.py:takes_its_time: its checks took more than 2\.5 s$"
    start = time.monotonic()
    with Child(submission("takes_its_time"), Limits(seconds=2.5)) as child, pytest.raises(UserError, match=message):
        list(child.checks())
    assert time.monotonic() - start < 60  # of one call after another, each within the limit, it would take minutes


def test_maps_of_another_size_are_one_line(model, batch):
    images, targets = batch[0].abs(), batch[1]
    message = r"^submission changes_its_size\.py:changes_its_size: returned maps of 16 x 16, and of 32 x 32 before for "
    with Child(submission("changes_its_size")) as child:
        child.heatmaps(model, images, targets)
        with pytest.raises(UserError, match=message + r"such a model: h x w must stay$"):
            child.heatmaps(model, -images, targets)
        assert child.heatmaps(model, images, targets).shape == (4, 32, 32)


def test_processes_that_left_the_group_end_with_the_submission(model, batch):
    with Child(submission("leaves_the_group")) as child:
        left = [int(pid) for pid in child.heatmaps(model, batch[0][:2], batch[1][:2])[:, 0, 0]]
        assert [alive(pid) for pid in left] == [True, True]
        assert {os.getsid(pid) for pid in left}.isdisjoint({os.getsid(child._process.pid)})
    assert [alive(pid) for pid in left] == [False, False]


@landlock
@pytest.mark.skipif(platform.machine() not in seccomp.NATIVE, reason="no numbers of system calls for this machine")
def test_nothing_is_left_in_the_kernel(model, batch, tmp_path):
    file = tmp_path / "mine.py"
    file.write_bytes((CHEATS / "kept_in_the_kernel.py").read_bytes())
    before = file.stat()
    with Child(parse(f"{file}:kept_in_the_kernel")) as child:
        assert not child.heatmaps(model, *batch).any()
    after = file.stat()
    assert (after.st_ctime_ns, after.st_mtime_ns, after.st_mode) == (
        before.st_ctime_ns,
        before.st_mtime_ns,
        before.st_mode,
    )


@landlock
@pytest.mark.skipif(platform.machine() not in seccomp.NATIVE, reason="no numbers of system calls for this machine")
def test_nothing_is_left_with_what_outlives_it(two, batch):
    with Child(submission("kept_by_others")) as child:
        for each in two:
            assert not child.heatmaps(each, *batch).any()


ONE_FILE = (
    "a submission is one file: it reads itself, installed packages and the dataset, nothing that lies beside it, and "
    "writes into its own folder alone"
)


@landlock
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("reads_beside_itself", r"PermissionError: \[Errno 13\] Permission denied: '.*/frozen_in_memory.py'"),
        ("imports_beside_itself", "ModuleNotFoundError: No module named 'frozen_in_memory'"),
    ],
)
def test_what_lies_beside_a_submission_is_not_read(name, error, model, batch):
    with Child(submission(name)) as child, pytest.raises(UserError, match=rf"{error}: {ONE_FILE} \({name}\.py, line"):
        child.heatmaps(model, *batch)


@landlock
@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("os.rename(os.getcwd(), os.getcwd() + 'x')", "PermissionError"),
        ("os.kill(os.getppid(), 9)", "PermissionError"),
        ("os.listdir(os.path.dirname(os.getcwd()))", "PermissionError"),
        ("socket.create_connection(('127.0.0.1', 9), 1)", "PermissionError"),
    ],
)
def test_there_is_no_way_out_of_its_folder(line, error, tmp_path, model, batch):
    (tmp_path / "tries.py").write_text(f"import os, socket\ndef tries(model, images, targets):\n    {line}\n")
    with Child(parse(f"{tmp_path}/tries.py:tries")) as child, pytest.raises(UserError, match=f": {error}: "):
        child.heatmaps(model, *batch)
