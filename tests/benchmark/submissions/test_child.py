"""Submissions in their child process: what a good one returns, and that a bad one costs one line and nothing else."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from attacks import Location, Recipe
from attacks.errors import UserError
from benchmark import datasets, models
from benchmark.submissions.child import Child
from benchmark.submissions.submission import Limits, parse

pytestmark = pytest.mark.usefixtures("temporary")

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
    "returns_extremes": ("return images[:, 0].sign() * 3e38", "returned values too far apart for image 1 of 4"),
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
    "rolls": "return torch.rand(4, 32, 32) + random.random()",
    "leaves_processes": "p = [subprocess.Popen(['sleep', '60']).pid, fork()]; "
    "return torch.tensor(p).float().repeat_interleave(16)[:, None].expand(4, 32, 32)",
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


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return many(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="module")
def child(file):
    with Child(parse(f"{file}:many"), Limits(seconds=300, memory_gib=2)) as child:  # the machine may be busy
        yield child
        pid = child._started().pid
    assert not alive(pid)


def ask(child: Child, model, images, name: str) -> torch.Tensor:
    choice = [*BAD, *GOOD].index(name)
    return child.heatmaps(model, images, torch.full((len(images),), choice))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_submission_is_one_line_and_the_next_call_works(child, file, model, batch, name, monkeypatch):
    before = int(ask(child, model, batch[0], "says_where")[0, 0, 0])
    folder = Path(child._process.folder)
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
    left = [int(pid) for pid in ask(child, model, batch[0], "leaves_processes")[0, ::16, 0]]
    assert [alive(pid) for pid in left] == [True, True]
    folder = Path(child._process.folder)
    assert folder.is_dir()
    child.close()
    assert soon(lambda: not any(alive(pid) for pid in left))
    assert not folder.exists()
    child.close()
    assert torch.equal(ask(child, model, batch[0], "looks"), batch[0][:, 0])


def test_a_function_is_described(child):
    about = {"name": "many", "kind": "function", "differentiable": False, "stochastic": False}
    assert child.describe() == about


def test_a_manipulation_against_what_cannot_be_differentiated_is_an_error(child, model):
    data = datasets.create("shapes", size=4, input_size=32)
    data.targets = torch.full((4,), [*BAD, *GOOD].index("rolls"))
    with pytest.raises(UserError, match=r"the heatmaps of many do not depend on the model's parameters$"):
        child.manipulate(model, Location(), data, Recipe(1e-4, 1.0, 1, 4))


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
        Child(parse(f"{tmp_path}/bad.py:lrp")) as child,
        pytest.raises(UserError, match=f"^submission bad.py:lrp: {message}"),
    ):
        child.describe()


def test_an_edited_file_is_not_taken_for_the_one_that_was_read(gradient, tmp_path):
    file, text = tmp_path / "mine.py", gradient.file.read_text()
    file.write_text(text)
    read = parse(f"{file}:gradient")
    file.write_text(f"{text}\n")
    assert parse(f"{file}:gradient") != read
    with Child(read) as child, pytest.raises(UserError, match=r"mine\.py was edited after it was read: start again$"):
        child.describe()


def test_a_killed_parent_takes_its_child_and_the_folder_along(gradient, temporary):
    code = f"""
import sys, tempfile, time
from benchmark.submissions.child import Child
from benchmark.submissions.submission import parse
tempfile.tempdir = {str(temporary)!r}
child = Child(parse({f"{gradient.file}:PlainGradient"!r}))
child.describe()
print(child._process.pid, child._process.folder, flush=True)
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
