"""A submission's process is not told where the store is: by no request, variable, argument, folder or file."""

import os
from pathlib import Path

import pytest

from attacks.course import Recipe
from benchmark.cells import Manipulation
from benchmark.entries.images import batches
from benchmark.entries.strategies import by_gradient
from benchmark.entries.trained import clean_model
from benchmark.run import Run
from benchmark.submissions import pipe, remote

pytestmark = pytest.mark.usefixtures("temporary")


def seen_by(pid: int) -> list[bytes]:
    """What a process was started with and holds."""
    of = Path(f"/proc/{pid}")
    links = [os.readlink(link).encode() for link in (of / "cwd", *(of / "fd").iterdir())]
    return [(of / "environ").read_bytes(), (of / "cmdline").read_bytes(), *links]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="what a process sees is read from /proc")
def test_nothing_says_where_the_store_is(on_files, gradient, tmp_path, monkeypatch):
    store = tmp_path / "unheard-of"  # a name, for paths may travel in parts
    monkeypatch.setenv("FOOLBENCH_STORE", str(store))
    told, send = [], pipe.Process.send

    def listened(self, request, deadline):
        told.extend([request, *seen_by(self.pid)])
        send(self, request, deadline)

    monkeypatch.setattr(pipe.Process, "send", listened)
    for child in remote.CHILDREN.values():
        child.close()  # so that it is started with these variables
    submission = remote.remote(gradient)
    run = Run(on_files.suite, str(store), on_files.data, submission=submission)
    images, targets = next(batches(run, "test"))  # decoded, in the store
    model = clean_model(run, "compact_vgg")
    submission(model, images[:2], targets[:2])
    made = by_gradient(run, Manipulation("compact_vgg", "location", submission.name, 0), Recipe(1e-3, 1.0, 1, 4))
    assert made.status == "done"
    assert [part for part in told if b"mine.py" in part]  # what it is told is heard,
    assert [part for part in told if tmp_path.name.encode() in part]  # the folder of the images, too
    assert list(store.glob("pixels/*/pixels.npy"))
    assert not [part for part in told if store.name.encode() in part or b"FOOLBENCH_STORE" in part]
