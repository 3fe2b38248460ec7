"""Ray nodes for real, on the loopback interface: the bytes of a local run, with nodes, processes and patience lost."""

import importlib.util
import os
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
from benchmark.entries import harness
from benchmark.execution import compute, ray_engine, watch
from benchmark.run import Run, told

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
ROOT = Path(ray_engine.__file__).parents[2]
PATHS = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
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


def test_a_run_here_takes_no_option_of_a_cluster_and_a_cluster_no_relative_path(finished):
    command = [sys.executable, "-m", "benchmark.cli", "run", "--suite", "smoke", "--address", "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == "foolbench: --address, --cpus-per-cell and --gpus-per-cell are options of --engine ray\n"
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
    environment = ray_engine.SAFE | ray_engine.ALONE | {"RAY_AUTH_TOKEN": uuid.uuid4().hex, "PYTHONPATH": PATHS}
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
        nodes.shutdown()


def starting(cluster, **options):
    return lambda run: ray_engine.start(run, cluster.address, **options)


def nodes_of(store: Path) -> dict[str, int]:
    """How many units each node has done in the last run."""
    runs = [watch.read(path) for path in watch.folder(store).glob("*.json")]
    return max(runs, key=lambda run: run["started"])["done"]


class TestCluster:
    pytestmark = with_ray

    def test_two_nodes_give_the_bytes_of_a_local_run(self, finished, cluster, tmp_path):
        other = replace(finished, run=replace(finished.run, store=str(tmp_path / "store")), out=tmp_path / "out")
        assert compute.run_suite(other.run, other.out, start=starting(cluster)) == {}
        assert other.written() == finished.written()
        assert other.entries().keys() == finished.entries().keys()
        assert len(nodes_of(other.store)) == 2
        assert not list((watch.folder(other.store) / "claims").iterdir())

    def test_two_nodes_that_read_image_files_give_the_bytes_of_a_local_run(self, on_files, cluster, tmp_path):
        there = replace(on_files, store=str(tmp_path / "there"))
        assert compute.run_suite(on_files, tmp_path / "a", jobs=1) == {}
        assert compute.run_suite(there, tmp_path / "b", start=starting(cluster)) == {}
        first, second = (
            {p.relative_to(out): p.read_bytes() for p in out.rglob("*.*")} for out in (tmp_path / "a", tmp_path / "b")
        )
        assert first == second

    def test_a_node_that_has_other_files_stops_the_run(self, on_files, cluster):
        known = told(on_files)
        next((Path(known.data) / "test").rglob("*.png")).unlink()
        units = [("a", harness.make_originals, (known, "compact_vgg", "lrp_t", False))]
        with (
            compute.executor(known, 1, starting(cluster)) as submit,
            pytest.raises(UserError, match="has other files or classes in"),
        ):
            list(submit(units))

    def test_a_process_that_dies_or_hangs_costs_its_own_unit_alone(self, finished, cluster, tmp_path):
        run = replace(finished.run, store=str(tmp_path / "store"))
        units = [("dies", os._exit, (9,)), ("hangs", time.sleep, (600,)), ("raises", int, ("x",))]
        units += [(f"sleeps {i}", time.sleep, (0.01,)) for i in range(5)]
        with compute.executor(run, 1, starting(cluster), 1.0) as submit:
            found = dict(submit(units))
        assert found.pop("dies").startswith("its process or node was lost (out of memory?): WorkerCrashedError (3 tim")
        assert found.pop("hangs") == "ran past its limit of 1 s (3 times)"
        assert found.pop("raises").startswith("ValueError: invalid literal")
        assert set(found.values()) == {""}

    def test_of_three_nodes_one_is_killed_and_the_bytes_are_the_same(self, finished, cluster, tmp_path):
        third = cluster.more()
        other = finished.again(tmp_path, without=("manipulations", "scores", "predictions"))
        units, needs, after = compute.graph(other.run)
        begun, claims = tmp_path / "begun", watch.folder(other.run.store) / "claims"
        wait = (["sh", "-c", f"echo >> {begun}; sleep 3"],)
        waits = [(f"wait {i}", subprocess.check_call, wait) for i in range(9)]
        errors: dict[str, str] = {}

        def ages() -> list[float]:
            """Of the units on the third node."""
            found = [watch.read(path) or {} for path in claims.glob("[!.]*")]
            return [time.time() - c["started"] for c in found if third.node_id[:6] in c.get("node", "")]

        with compute.executor(other.run, 1, starting(cluster)) as submit:
            driver = threading.Thread(target=lambda: errors.update(submit(waits + units, needs, after)))
            driver.start()
            while driver.is_alive() and not any(0.5 < age < 2 for age in ages()):
                time.sleep(0.1)
            cluster.remove(third, allow_graceful=False)
            driver.join()
        assert len(begun.read_text()) > len(waits), "the third node had a unit, which was run again"
        assert set(errors.values()) == {""}
        assert len(errors) == len(waits + units)
        compute.collect(other.run, other.out, {})
        assert other.written() == finished.written()

    def test_nodes_that_lack_what_a_cell_takes_or_do_not_answer_are_one_line(self, finished, cluster):
        with pytest.raises(UserError, match=r"a cell takes 1 CPU and 9 GPU; no node has them \(got 1 CPU 0 GPU, 1 "):
            ray_engine.start(finished.run, cluster.address, gpus=9)
        with pytest.raises(UserError, match=r"the cluster at 127.0.0.1:1 cannot be joined: ConnectionRefusedError"):
            ray_engine.start(finished.run, "127.0.0.1:1")

    def test_a_node_without_the_data_stops_the_run(self, finished, cluster, tmp_path):
        run = replace(finished.run, store=str(tmp_path / "store"), data=str(tmp_path / "nowhere"))
        with (
            pytest.raises(UserError, match=r"node .* does not see the data .*nowhere"),
            compute.executor(run, 1, starting(cluster)) as submit,
        ):
            list(submit([("a", compute.name_of, (run,))]))

    def test_the_command_runs_a_suite_on_nodes_of_its_own_on_the_loopback_interface(self, finished, tmp_path):
        other = finished.again(tmp_path, without=("scores",))
        command = [sys.executable, "-m", "benchmark.cli", "run", "--suite", "smoke", "--device", "cpu", "--jobs", "2"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environment |= {"RAY_AUTH_TOKEN": uuid.uuid4().hex, "PYTHONPATH": PATHS}
        options = ["--engine", "ray", "--store", other.store, "--out", other.out]
        done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
        assert other.written() == finished.written()
        lines = [entry for entry in done.stderr.splitlines() if not entry.startswith("[")]
        assert lines == []
