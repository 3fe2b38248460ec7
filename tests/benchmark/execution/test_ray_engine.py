"""Ray nodes for real, on the loopback interface: the bytes of a local run, with nodes, processes and patience lost.

All in this file, which one process should run: of two clusters that start at a time, one may join the other's node.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from attacks.errors import UserError
from benchmark import cli
from benchmark.cells import View
from benchmark.entries.kind import Entry, make_unit
from benchmark.entries.originals import ORIGINALS
from benchmark.execution import claims, compute, engines, ray_engine
from benchmark.execution.engines import Unit
from benchmark.execution.executor import executor
from benchmark.run import Run, tell

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
ROOT = Path(ray_engine.__file__).parents[2]
PATHS = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
# with Ray's own niceness of 15 its processes would wait for all other tests
NODES = {"PYTHONPATH": PATHS, "RAY_worker_niceness": "0"}
HAVE_RAY = importlib.util.find_spec("ray") is not None
with_ray = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not HAVE_RAY, reason="Ray is not installed: pip install 'foolbench[ray]'"),
]


def test_without_ray_one_line_says_how_to_get_it(finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs Ray, which is not installed: pip install 'foolbench\[ray\]'"):
        ray_engine.start(finished.run)


def test_a_run_here_takes_no_option_of_a_cluster_and_a_cluster_no_relative_path(finished, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["foolbench", "run", "--suite", "smoke", "--address", "127.0.0.1:1"])
    with pytest.raises(SystemExit):
        cli.main()
    said = "foolbench: --address, --cpus-per-cell and --gpus-per-cell are options of --engine ray\n"
    assert capfd.readouterr().err == said
    if HAVE_RAY:
        with pytest.raises(UserError, match=r"store must be an absolute path on a cluster \(got 'here'\)"):
            ray_engine.start(Run(finished.run.suite, "here"))


def ports(names: tuple[str, ...]) -> dict[str, int]:
    """A free port for each name. Ray gives its agents 15 s to tell theirs, which a busy machine exceeds."""
    with ExitStack() as stack:
        found = {}
        for name in names:
            where = stack.enter_context(socket.socket())
            where.bind(("127.0.0.1", 0))
            found[name] = where.getsockname()[1]
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes of one CPU each; `more` adds one."""
    environment = ray_engine.SAFE | ray_engine.ALONE | {"RAY_AUTH_TOKEN": uuid.uuid4().hex, **NODES}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        nodes = Cluster()

        def more(**options):
            fixed = ports(PORTS)
            return nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20, **fixed, **options)

        more(include_dashboard=False)
        more()
        yield SimpleNamespace(address=nodes.address, more=more, remove=nodes.remove_node)
        sys.modules["ray"].shutdown()
        nodes.shutdown()


@pytest.fixture
def start(cluster, monkeypatch):
    """`ray_engine.start` on the cluster. All tests share the connection of the first: Ray ends its processes with a
    connection, and a new one imports for seconds."""
    import ray

    join = ray.init
    monkeypatch.setattr(ray, "init", lambda **options: None if ray.is_initialized() else join(**options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return lambda run, **options: ray_engine.start(run, cluster.address, **options)


def meeting(folder: Path, count: int, enough: int) -> list[Unit]:
    """Units that end when so many of them have begun, or there is `folder`/go: so many nodes are at work together."""
    begin = f"cd {folder}; echo >> begun; test $(wc -l < begun) -lt {enough} || touch go"
    wait = "n=0; until test -e go; do sleep 0.2; n=$((n + 1)); test $n -lt 1500; done"  # not for ever: -e
    return [(f"wait {i}", subprocess.check_call, (["sh", "-ec", f"{begin}; {wait}"],)) for i in range(count)]


def nodes_of(store: Path) -> dict[str, int]:
    """How many units each node has done in the last run."""
    runs = [claims.read(path) for path in claims.folder(store).glob("*.json")]
    return max(runs, key=lambda run: run["started"])["done"]


class TestCluster:
    pytestmark = with_ray

    def test_two_nodes_give_the_bytes_of_a_local_run(self, finished, start, tmp_path):
        other = replace(finished, run=replace(finished.run, store=str(tmp_path / "store")), out=tmp_path / "out")
        with executor(other.run, 1, start) as submit:  # or one may have done all before the other has imported
            assert dict(submit(meeting(tmp_path, 2, enough=2))) == {"wait 0": "", "wait 1": ""}
        assert compute.run_suite(other.run, other.out, start=start) == {}
        assert other.written() == finished.written()
        assert other.entries().keys() == finished.entries().keys()
        assert len(nodes_of(other.store)) == 2
        assert not list((claims.folder(other.store) / "claims").iterdir())

    def test_two_nodes_that_read_image_files_give_the_bytes_of_a_local_run(self, on_files, start, tmp_path):
        there = replace(on_files, store=str(tmp_path / "there"))
        assert compute.run_suite(on_files, tmp_path / "a", jobs=1) == {}
        assert compute.run_suite(there, tmp_path / "b", start=start) == {}
        first, second = (
            {p.relative_to(out): p.read_bytes() for p in out.rglob("*.*")} for out in (tmp_path / "a", tmp_path / "b")
        )
        assert first == second

    def test_a_node_that_has_other_files_stops_the_run(self, on_files, start):
        known = replace(on_files)
        tell(known)
        next((Path(known.data) / "test").rglob("*.png")).unlink()
        units = [("a", make_unit, (known, (Entry(ORIGINALS, View("compact_vgg", "lrp_t")),)))]
        with (
            executor(known, 1, start) as submit,
            pytest.raises(UserError, match="has other files or classes in"),
        ):
            list(submit(units))

    def test_a_process_that_dies_or_hangs_costs_its_own_unit_alone(self, finished, start, tmp_path, monkeypatch):
        monkeypatch.setattr(engines, "RETRIES", 1)  # each costs a process
        run = replace(finished.run, store=str(tmp_path / "store"))
        sleeps = [(f"sleeps {i}", time.sleep, (0.01,)) for i in range(5)]
        with executor(run, 1, start, 600.0) as submit:
            found = dict(submit([("dies", os._exit, (9,)), ("raises", int, ("x",)), *sleeps]))
        assert found.pop("dies").startswith("its process or node was lost (out of memory?): WorkerCrashedError (2 tim")
        assert found.pop("raises").startswith("ValueError: invalid literal")
        assert found == dict.fromkeys((name for name, *_ in sleeps), "")
        with executor(run, 1, start, 1.0) as submit:
            found = dict(submit([("hangs", time.sleep, (600,)), *sleeps]))
        assert found.pop("hangs") == "ran past its limit of 1 s (2 times)"
        assert found == dict.fromkeys((name for name, *_ in sleeps), "")

    def test_of_three_nodes_one_is_killed_and_the_bytes_are_the_same(self, finished, cluster, start, tmp_path):
        third = cluster.more()
        other = finished.again(tmp_path, without=("manipulations", "scores", "predictions"))
        units, needs, after = compute.graph(other.run, compute.wanted(other.run))
        begun, working = tmp_path / "begun", claims.folder(other.run.store) / "claims"
        waits = meeting(tmp_path, 3, enough=4)  # the fourth is the one that was lost
        begun.touch()
        errors: dict[str, str] = {}

        def on_third() -> list[int]:
            """The process of the unit on the third node."""
            found = [claims.read(path) or {} for path in working.glob("[!.]*")]
            return [claim["pid"] for claim in found if third.node_id[:6] in claim.get("node", "")]

        with executor(other.run, 1, start) as submit:
            driver = threading.Thread(target=lambda: errors.update(submit(waits + units, needs, after)))
            driver.start()
            while driver.is_alive() and not (begun.read_text().count("\n") == 3 and on_third()):
                time.sleep(0.05)
            cluster.remove(third, allow_graceful=False)
            for pid in on_third():  # outlives its node for a moment, in which it could end its unit
                os.kill(pid, signal.SIGKILL)
            (tmp_path / "go").touch()
            driver.join()
        assert begun.read_text().count("\n") == 4, "the third node had a unit, which was run again"
        assert set(errors.values()) == {""}
        assert len(errors) == len(waits + units)
        compute.collect(other.run, other.out, {})
        assert other.written() == finished.written()

    def test_nodes_that_lack_what_a_cell_takes_or_do_not_answer_are_one_line(self, finished, start):
        with pytest.raises(UserError, match=r"a unit takes 1 CPU and 9 GPU; no node has them \(got 1 CPU 0 GPU, 1 "):
            start(finished.run, gpus=9)
        with pytest.raises(UserError, match=r"the cluster at 127.0.0.1:1 cannot be joined: ConnectionRefusedError"):
            ray_engine.start(finished.run, "127.0.0.1:1")

    def test_a_node_without_the_data_stops_the_run(self, finished, start, tmp_path):
        run = replace(finished.run, store=str(tmp_path / "store"), data=str(tmp_path / "nowhere"))
        with (
            pytest.raises(UserError, match=r"node .* does not see the data .*nowhere"),
            executor(run, 1, start) as submit,
        ):
            list(submit([("a", print, (run,))]))

    def test_the_command_runs_a_suite_on_nodes_of_its_own_on_the_loopback_interface(self, finished, tmp_path):
        other = finished.again(tmp_path)
        shutil.rmtree(next((other.store / "predictions").iterdir()))  # one unit is enough
        command = [sys.executable, "-m", "benchmark.cli", "run", "--suite", "smoke", "--device", "cpu", "--jobs", "2"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environment |= {"RAY_AUTH_TOKEN": uuid.uuid4().hex, **NODES}
        options = ["--engine", "ray", "--store", other.store, "--out", other.out]
        done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        assert other.written() == finished.written()
        lines = [entry for entry in done.stderr.splitlines() if not entry.startswith("[")]
        assert lines == []
