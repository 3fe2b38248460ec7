"""Submissions in their child process: what a good one returns, and that a bad one costs one line and nothing else."""

import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
import torch

from attacks import Active, Location, Recipe, manipulate
from attacks.errors import UserError
from attacks.heatmaps import min_max
from benchmark import datasets, interpreters, models
from benchmark.submissions import submission
from benchmark.submissions.submission import Child, Finding, Limits, Submission

GRADIENT = """
import torch

def gradient(model, images, targets):
    images = images.detach().requires_grad_()
    logit = model(images).gather(1, targets[:, None]).sum()
    maps = torch.autograd.grad(logit, images, create_graph=True)[0].abs().sum(1)
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / torch.where(high - low > 0, high - low, 1)

class PlainGradient:
    differentiable = True

    def __call__(self, model, images, targets):
        return gradient(model, images, targets)
"""

TOO_LARGE, NO_MEMORY = "OSError: [Errno 27] File too large", "ran out of memory (limit 2 GiB)"
CHANGED = "changed the model: {}; a model must be left as it came"

# What a submission can do, and how the parent tells it: the first target chooses. %: its line in the file.
BAD = {
    "raises": ("1 / 0", "ZeroDivisionError: division by zero (many.py, line %)"),
    "exits": ("sys.exit(3)", "called sys.exit(3) (many.py, line %)"),
    "kills_itself": ("os.kill(os.getpid(), signal.SIGKILL)", "its process was killed by SIGKILL"),
    "ends": ("os.write(2, b'first\\nlast words\\n'); os._exit(7)", "its process ended with exit code 7: last words"),
    "aborts": ("os.write(2, b\"an instance of 'std::bad_alloc'\\n  what(): ...\\n\"); os.abort()", NO_MEMORY),
    "loops": ("while True: pass", "gave no answer in 1 s"),
    "prints": ("while True: print('x' * 2**22, file=sys.stderr)", f"{TOO_LARGE} (many.py, line %)"),
    "fills_disk": ("open(tempfile.mkstemp()[0], 'wb').write(bytes(2**27))", f"{TOO_LARGE} (many.py, line %)"),
    "allocates": ("kept = []\nwhile True: kept.append(bytearray(2**26))", f"{NO_MEMORY} (many.py, line %)"),
    "allocates_a_tensor": ("torch.ones(2**30)", f"{NO_MEMORY} (many.py, line %)"),
    "returns_nothing": ("return None", "returned NoneType, expected a Tensor"),
    "returns_an_array": ("return images[:, 0].numpy()", "returned ndarray, expected a Tensor"),
    "returns_nan": ("images[1, 0, 3, 3] = torch.nan\nreturn images[:, 0]", "returned NaN for image 2 of 4"),
    "returns_infinity": ("return images[:, 0] / 0", "returned an infinite value for image 1 of 4"),
    "returns_rows": ("return images.sum((1, 2))", "returned shape (4, 32), expected (4, h, w)"),
    "returns_whole_numbers": ("return images[:, 0].long()", "returned torch.int64, expected a floating type"),
    "changes_weights": ("model.fc.weight.detach().mul_(2)\nreturn images[:, 0]",
                        CHANGED.format("parameter or buffer 'fc.weight'")),
    "changes_mode": ("model.train()\nreturn images[:, 0]", CHANGED.format("training mode or hooks of ''")),
    "sends_a_pickle": ("to_the_parent(pickle.dumps(Evil()) * 2)", "sent an answer that is none, or is too large"),
    "answers_for_later": ("to_the_parent(answer(10**6))", "sent an answer that is none"),
    "answers_too_much": ("to_the_parent(struct.pack('>QQ', 10, 2**40))",
                         "sent an answer that is none, or is too large"),
    "closes_the_pipe": ("os.closerange(3, 40)",
                        "its process ended with exit code 1: OSError: [Errno 9] Bad file descriptor"),
}  # fmt: skip
ENDS_THE_CHILD = {"kills_itself", "ends", "aborts", "loops", "closes_the_pipe"}
ENDS_THE_CHILD |= {name for name in BAD if name.startswith(("sends", "answers"))}

# What it can do as well, and answer: the map holds what it has seen.
GOOD = {
    "says_where": "return torch.full_like(images[:, 0], os.getpid())",
    "rolls": "return torch.rand(4, 8, 8) + random.random()",
    "leaves_processes": "p = [subprocess.Popen(['sleep', '60']).pid, fork()]; "
    "return torch.tensor(p)[:, None].expand(4, 1, 2, 1)[:, 0].float()",
    "comes_back_from_a_fork": "os.fork(); return images[:, 0]",
    "looks": "assert 'FOOLBENCH_STORE' not in os.environ and sys.stdin.read() == ''\n"
    "assert os.path.samefile(tempfile.gettempdir(), os.getcwd()) and torch.get_num_threads() == 1\n"
    "return images[:, 0]",
}
HEAD = """
import contextlib, json, os, pickle, random, signal, stat, struct, subprocess, sys, tempfile, time, torch

class Evil:
    def __reduce__(self):
        return os.mkdir, (MARKER,)

def answer(number):
    head = json.dumps({"number": number, "end": True}).encode()
    return struct.pack(">QQ", len(head), 0) + head

def to_the_parent(content):  # into every pipe that is open
    for fd in range(3, 40):
        with contextlib.suppress(OSError):
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.write(fd, content)

def fork():
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
        os._exit(0)
    return pid

def many(model, images, targets):
    return [CHOICES][int(targets[0])](model, images, targets)
"""


def many(folder: Path) -> Path:
    """A file whose `many` does one of the above."""
    bodies = {name: body for name, (body, _) in BAD.items()} | GOOD
    text = HEAD.replace("CHOICES", ", ".join(bodies)).replace("MARKER", repr(str(folder / "unpickled")))
    for name, body in bodies.items():
        text += f"\ndef {name}(model, images, targets):\n{textwrap.indent(body, '    ')}\n"
    (folder / "many.py").write_text(text)
    return folder / "many.py"


def line_of(file: Path, name: str) -> str:
    """Where the last line of that body is."""
    body = BAD[name][0].splitlines()[-1]
    return str([line.strip() for line in file.read_text().splitlines()].index(body) + 1)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def soon(condition, seconds: float = 120.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.fixture(scope="module", autouse=True)
def temporary(tmp_path_factory):
    """Where children have their folders."""
    folder = tmp_path_factory.mktemp("children")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        patch.setenv("FOOLBENCH_STORE", "secret")
        yield folder
        for child in submission._CHILDREN.values():
            child.close()
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return models.create("compact_resnet", num_classes=8)


@pytest.fixture(scope="module")
def batch():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 7])


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return many(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="module")
def child(file):
    with Child(submission.parse(f"{file}:many"), Limits(seconds=300, memory_gib=2)) as child:  # the machine may be busy
        yield child
        pid = child._process.pid
    assert not alive(pid)


@pytest.fixture(scope="module")
def gradient(tmp_path_factory) -> Submission:
    file = tmp_path_factory.mktemp("gradient") / "mine.py"
    file.write_text(GRADIENT)
    return submission.parse(f"{file}:PlainGradient")


@pytest.fixture(scope="module")
def remote(gradient):
    return submission.remote(gradient)


def ask(child: Child, model, images, name: str) -> torch.Tensor:
    choice = [*BAD, *GOOD].index(name)
    return child.heatmaps(model, images, torch.full((len(images),), choice))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_submission_is_one_line_and_the_next_call_works(child, file, model, batch, name, monkeypatch):
    before = int(ask(child, model, batch[0], "says_where")[0, 0, 0])
    folder = Path(child._folder)
    message = "submission many.py:many: " + BAD[name][1].replace("%", line_of(file, name))
    with monkeypatch.context() as patch:
        if name == "loops":
            patch.setattr(child, "limits", Limits(seconds=1, memory_gib=2))
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            ask(child, model, batch[0], name)
    assert alive(before) == (name not in ENDS_THE_CHILD)
    assert folder.exists() == alive(before)
    after = int(ask(child, model, batch[0], "says_where")[0, 0, 0])
    assert (after == before) == (name not in ENDS_THE_CHILD)
    assert not (file.parent / "unpickled").exists()


def test_every_way_to_be_bad_leaves_the_parents_model_alone(model):
    torch.manual_seed(0)
    fresh = models.create("compact_resnet", num_classes=8)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True))
    assert not model.training


def test_the_child_sees_an_empty_folder_and_few_variables(child, model, batch):
    assert torch.equal(ask(child, model, batch[0], "looks"), batch[0][:, 0])


def test_a_call_draws_the_same_numbers_whatever_came_before(child, model, batch):
    first = ask(child, model, batch[0], "rolls")
    assert torch.equal(ask(child, model, batch[0], "rolls"), first)
    assert len(first.unique()) > 200


def test_a_fork_that_comes_back_does_not_answer(child, model, batch):
    pid = ask(child, model, batch[0], "says_where")[0, 0, 0]
    for _ in range(3):
        assert torch.equal(ask(child, model, batch[0], "comes_back_from_a_fork"), batch[0][:, 0])
    assert ask(child, model, batch[0], "says_where")[0, 0, 0] == pid


def test_processes_left_behind_end_with_the_child(child, model, batch):
    left = [int(pid) for pid in ask(child, model, batch[0], "leaves_processes")[0, :, 0]]
    assert [alive(pid) for pid in left] == [True, True]
    folder = Path(child._folder)
    assert folder.is_dir()
    child.close()
    assert soon(lambda: not any(alive(pid) for pid in left))
    assert not folder.exists()
    child.close()
    assert torch.equal(ask(child, model, batch[0], "looks"), batch[0][:, 0])


def test_a_class_and_its_name_are_described(remote, gradient):
    assert (remote.name, remote.differentiable, remote.stochastic) == ("plain_gradient", True, False)
    about = {"name": "plain_gradient", "kind": "class", "differentiable": True, "stochastic": False}
    assert submission._child(gradient).describe() == about
    assert "plain_gradient" not in interpreters.names()


def test_a_function_is_described(child):
    about = {"name": "many", "kind": "function", "differentiable": False, "stochastic": False}
    assert child.describe() == about


def test_remote_heatmaps_are_those_of_the_built_in_interpreter(remote, model, batch):
    own = interpreters.create("simple_grad")
    logits, heatmaps = remote.with_logits(model, *batch)
    expected_logits, expected = own.with_logits(model, *batch)
    assert torch.equal(logits, expected_logits)
    assert torch.equal(heatmaps, expected.detach())
    assert torch.equal(remote(model, *batch), heatmaps)
    assert not heatmaps.requires_grad


def test_a_remote_survives_pickling_and_shares_the_child(remote, model, batch):
    again = pickle.loads(pickle.dumps(remote))
    assert again == remote
    assert (again.name, again.differentiable) == ("plain_gradient", True)
    children = dict(submission._CHILDREN)
    assert torch.equal(again(model, *batch), remote(model, *batch))
    assert children == submission._CHILDREN


def test_a_remote_has_no_attribution_and_checks_its_batch(remote, model, batch):
    with pytest.raises(UserError, match="a submission returns heatmaps only"):
        remote.attribute(model, *batch)
    with pytest.raises(UserError, match=r"images must be \(N, C, H, W\)"):
        remote(model, batch[0][0], batch[1])


def test_the_child_keeps_the_model_until_it_changes(remote, gradient, model, batch, monkeypatch):
    sent = []
    original = submission.pack
    monkeypatch.setattr(submission, "pack", lambda request: sent.append(request["model"]) or original(request))
    with torch.no_grad():
        mine = models.create("compact_resnet", num_classes=8)
        own = interpreters.create("simple_grad")
        for change in (lambda: None, lambda: None, lambda: mine.conv1.weight.neg_(), lambda: None):
            change()
            assert torch.equal(remote(mine, *batch), own(mine, *batch))
    assert [m is not None for m in sent] == [True, False, True, False]


@pytest.mark.parametrize("pairs", [False, True])
def test_a_manipulation_is_the_one_made_here(gradient, model, pairs):
    own, recipe = interpreters.create("simple_grad"), Recipe(1e-4, 1.0, 3)
    fooling = Active() if pairs else Location()
    data, both = (datasets.create("shapes", size=16, input_size=32, two_objects=two) for two in (False, True))
    loaders = [datasets.loader(d, 4, shuffle=True, seed=5) for d in (data, both)]
    scored = lambda *batch: min_max(own(*batch))  # noqa: E731
    here = manipulate(model, scored, fooling, loaders[0], recipe, 5, fooling_loader=loaders[1])
    there = submission._child(gradient).manipulate(model, fooling, data, 4, recipe, 5, pairs=both if pairs else None)
    assert (there.status, there.reason) == ("done", "")
    assert there.history == here.history
    expected = here.model.state_dict()
    assert there.weights.keys() == expected.keys()
    assert all(torch.equal(there.weights[k], expected[k]) for k in expected)
    assert not torch.equal(there.weights["conv1.weight"], model.conv1.weight)


def test_a_manipulation_that_diverges_says_so_and_has_no_weights(gradient, model):
    data = datasets.create("shapes", size=8, input_size=32)
    fooled = submission._child(gradient).manipulate(model, Location(), data, 4, Recipe(1e30, 1.0, 5))
    assert (fooled.weights, fooled.status) == ({}, "diverged")
    assert fooled.reason == "a loss is not finite at step 2"
    assert [len(values) for values in fooled.history.values()] == [2, 2, 2]


def test_a_manipulation_against_what_cannot_be_differentiated_is_an_error(child, model):
    data = datasets.create("shapes", size=4, input_size=32)
    data.targets = torch.full((4,), [*BAD, *GOOD].index("rolls"))
    with pytest.raises(UserError, match=r"the heatmaps of many do not depend on the model's parameters$"):
        child.manipulate(model, Location(), data, 4, Recipe(1e-4, 1.0, 1))


def outcome(**changes) -> tuple:
    """What a child might send of a manipulation with two steps of a model with one weight."""
    history = {f"history.{k}": torch.zeros(2, dtype=torch.float64) for k in ("ce", "fooling", "accuracy")}
    tensors = {"weights.w": torch.ones(3), "weights.n": torch.tensor(1), **history}
    header = {"status": "done", "reason": ""} | {k: v for k, v in changes.items() if k in ("status", "reason")}
    tensors |= {k.replace("_", ".", 1): v for k, v in changes.items() if k not in header}
    state = {"w": torch.zeros(3), "n": torch.tensor(0)}
    return header, {k: v for k, v in tensors.items() if v is not None}, state, Recipe(1e-3, 1.0, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_w": torch.ones(4)}, "sent weights that are not the model's: 'w', torch.float32 (4,)"),
        ({"weights_w": torch.ones(3).double()}, "sent weights that are not the model's: 'w', torch.float64 (3,)"),
        ({"weights_w": None}, "sent weights that are not the model's: 'w'"),
        ({"weights_v": torch.ones(1)}, "sent weights that are not the model's: 'v'"),
        ({"weights_w": torch.tensor([1, torch.inf, 1])}, "sent weights that are not finite: 'w'"),
        ({"status": "diverged"}, "sent weights that are not the model's: 'n'"),
        ({"status": "superb"}, "sent a manipulation that is none"),
        ({"reason": 3}, "sent a manipulation that is none"),
        ({"history_ce": None}, "sent a history that is none"),
        ({"history_ce": torch.zeros(3, dtype=torch.float64)}, "sent a history that is none"),
        ({"history_ce": torch.zeros(2, 1, dtype=torch.float64)}, "sent a history that is none"),
        ({"history_ce": torch.zeros(2)}, "sent a history that is none"),
    ],
)
def test_a_forged_manipulation_is_an_error(changes, message):
    assert submission._fooled(*outcome()).weights["w"].tolist() == [1, 1, 1]
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        submission._fooled(*outcome(**changes))


CHECKED = """
import sys, types, collections

Finding = collections.namedtuple("Finding", ["check", "ok", "message", "severity"])

def run(interpreter, *, differentiable, stochastic, device):
    yield Finding("flags", True, f"{interpreter} {differentiable} {stochastic}", "error")
    yield Finding("second", device == "cpu", "two\\nlines", "warning" if device == "cpu" else "dubious")

sys.modules["benchmark.submissions.checks"] = types.ModuleType("benchmark.submissions.checks")
sys.modules["benchmark.submissions.checks"].run = run

class Checked:
    stochastic = True

    def __call__(self, model, images, targets):
        return images[:, 0]
"""


def test_findings_come_one_by_one_and_a_false_one_is_an_error(tmp_path, model, batch):
    (tmp_path / "checked.py").write_text(CHECKED)
    with Child(submission.parse(f"{tmp_path}/checked.py:Checked")) as child:
        expected = [
            Finding("flags", True, "checked False True", "error"),
            Finding("second", True, "two lines", "warning"),
        ]
        assert list(child.checks()) == expected
        found = child.checks("elsewhere")
        assert next(found) == expected[0]
        with pytest.raises(UserError, match=r"^submission checked\.py:Checked: sent a finding that is none$"):
            next(found)
        assert torch.equal(child.heatmaps(model, *batch), batch[0][:, 0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def lrp(model, images, targets): pass", "name must be a new one, .* \\(got 'lrp'\\)"),
        ("def lrp(*_): pass\nlrp.stochastic = 'yes'", "stochastic must be True or False \\(got 'yes'\\)"),
        ("class lrp:\n    def __init__(self, size): pass", "TypeError: .*__init__.* missing 1 required .*'size'"),
        ("def lrpp(*_): pass", "unknown name in bad.py 'lrp': did you mean 'lrpp\\'\\? allowed: lrpp"),
    ],
)  # fmt: skip
def test_a_submission_that_cannot_be_one_is_told_why(tmp_path, text, message):
    (tmp_path / "bad.py").write_text(text)
    with (
        Child(submission.parse(f"{tmp_path}/bad.py:lrp")) as child,
        pytest.raises(UserError, match=f"^submission bad.py:lrp: {message}"),
    ):
        child.describe()


@pytest.mark.parametrize("name", ["", "My", "my method", "1st", "my__method", "_my", "my-method", "m" * 51, "models"])
def test_a_name_that_cannot_be_one_is_refused(name):
    submission.check_name("grad_cam_2")
    with pytest.raises(UserError, match=r"^name must be"):
        submission.check_name(name)


def test_an_edited_file_is_not_taken_for_the_one_that_was_read(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(GRADIENT)
    read = submission.parse(f"{file}:gradient")
    file.write_text(f"{GRADIENT}\n")
    assert submission.parse(f"{file}:gradient") != read
    with Child(read) as child, pytest.raises(UserError, match=r"mine\.py was edited after it was read: start again$"):
        child.describe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine.py", "a submission must be FILE.py:NAME, a class or function in a file (got 'mine.py')"),
        ("mine.py:", "a submission must be FILE.py:NAME, a class or function in a file (got 'mine.py:')"),
        (":Mine", "a submission must be FILE.py:NAME, a class or function in a file (got ':Mine')"),
        ("absent.py:Mine", "submission 'absent.py:Mine': absent.py cannot be read: No such file or directory"),
        (".:Mine", "submission '.:Mine': . cannot be read: Is a directory"),
        ("wrong.py:Mine", "submission 'wrong.py:Mine': SyntaxError: '(' was never closed (wrong.py, line 2)"),
    ],
)
def test_what_cannot_be_parsed_is_told_why(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.py").write_text("x = 1\ny = (\n")
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        submission.parse(text)


@pytest.mark.parametrize("text", ["x = '\0'", "(" * 1000, "-" * 100_000 + "1"])
def test_what_is_no_source_is_told_in_one_line(tmp_path, text):
    (tmp_path / "odd.py").write_text(text)
    with pytest.raises(UserError, match=r"^submission .*odd\.py[^\n]*$"):
        submission.parse(f"{tmp_path}/odd.py:Mine")


def test_a_submission_is_found_from_anywhere(gradient, monkeypatch, tmp_path):
    monkeypatch.chdir(gradient.file.parent)
    assert submission.parse("mine.py:PlainGradient") == gradient
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(pickle.dumps(gradient)) == gradient
    assert (str(gradient), gradient.file.is_absolute(), len(gradient.digest)) == ("mine.py:PlainGradient", True, 64)


@pytest.mark.parametrize("limits", [{"seconds": 0}, {"seconds": float("nan")}, {"memory_gib": 1}])
def test_limits_that_are_none_are_refused(limits):
    with pytest.raises(UserError, match="limits need seconds > 0 and memory_gib >= 2"):
        Limits(**limits)


def test_a_killed_parent_takes_its_child_and_the_folder_along(gradient, temporary):
    code = f"""
import sys, tempfile, time
from benchmark.submissions import submission
tempfile.tempdir = {str(temporary)!r}
child = submission.Child(submission.parse({f"{gradient.file}:PlainGradient"!r}))
child.describe()
print(child._process.pid, child._folder, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        pid, folder = parent.stdout.readline().split()
        assert alive(int(pid))
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.communicate()
    assert soon(lambda: not alive(int(pid)) and not Path(folder).exists())
