"""The store: an entry is whole or absent, its key is canonical, and nothing is computed twice."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attacks.errors import UserError
from benchmark import store as store_module
from benchmark.store import Store, intact, key_of, source_digest

CONTENT = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"  # printf content | sha256sum
SPEC = {"model": "m", "seed": 0, "recipe": {"lambda": 1.0, "steps": 3}}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def write(content: str):
    def make(folder: Path) -> dict:
        (folder / "data.txt").write_text(content)
        return {"note": content}

    return make


def never(folder: Path) -> None:
    raise AssertionError("a finished key must not be computed again")


@given(st.dictionaries(st.text(), VALUES, min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(spec: dict, random):
    items = list(spec.items())
    random.shuffle(items)
    assert key_of(dict(items)) == key_of(spec)


def test_keys_are_the_sha256_of_canonical_json_and_tell_values_apart():
    # sha256sum of {"a":[1,2],"b":"\\u00e9"}
    assert key_of({"b": "é", "a": (1, 2)}) == "4f4995260c41bd0d71ea8af22d24cc1d506ca48d27518636b99fe2fdbfe1ee93"
    distinct = [{"a": 1}, {"a": "1"}, {"a": True}, {"a": None}, {"a": [1]}, {"a": 1.5}, {"b": 1}, {}]
    assert len({key_of(spec) for spec in distinct}) == len(distinct)


def test_an_entry_is_its_files_and_a_receipt(tmp_path):
    path = Store(tmp_path / "deep" / "store").get("kind", SPEC, write("content"))
    assert path == tmp_path / "deep" / "store" / "kind" / key_of(SPEC)
    assert files(path) == ["data.txt", "receipt.json"]
    receipt = json.loads((path / "receipt.json").read_text())
    digests = {"files": {"data.txt": {"bytes": 7, "sha256": CONTENT}}, "sha256": receipt["sha256"]}
    assert receipt == {"kind": "kind", "key": path.name, "spec": SPEC, "note": "content", **digests}
    assert receipt.pop("sha256") == key_of(receipt)
    receipt["sha256"] = digests["sha256"]
    assert Store(tmp_path / "deep" / "store").receipt("kind", path.name) == receipt


def test_what_is_there_is_not_computed_again_and_kinds_are_apart(tmp_path):
    first = Store(tmp_path).get("kind", SPEC, write("content"))
    assert Store(tmp_path).get("kind", SPEC, never) == first
    assert Store(tmp_path).receipt("other", key_of(SPEC)) is None
    assert Store(tmp_path).get("other", SPEC, write("another")) != first


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_maker_that_raises_leaves_nothing(tmp_path, error):
    def make(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise error

    with pytest.raises(error):
        Store(tmp_path).get("kind", SPEC, make)
    assert files(tmp_path) == []
    assert list(tmp_path.glob("tmp-*")) == []
    assert Store(tmp_path).get("kind", SPEC, write("content")).is_dir()


def test_an_entry_is_invisible_until_it_is_whole(tmp_path):
    def make(folder: Path) -> None:
        (folder / "data.txt").write_text("content")
        assert Store(tmp_path).receipt("kind", key_of(SPEC)) is None
        assert not Store(tmp_path).path("kind", key_of(SPEC)).exists()

    Store(tmp_path).get("kind", SPEC, make)


def test_of_two_writers_the_first_wins_and_the_second_goes_on(tmp_path):
    def slower(folder: Path) -> None:
        (folder / "data.txt").write_text("second")
        Store(tmp_path).get("kind", SPEC, write("first"))  # another process ends while this one computes

    path = Store(tmp_path).get("kind", SPEC, slower)
    assert (path / "data.txt").read_text() == "first"
    assert list(tmp_path.glob("tmp-*")) == []


def test_processes_that_write_at_once_leave_one_whole_entry_each(tmp_path):
    script = (
        "import sys, pathlib; from benchmark.store import Store\n"
        "for i in range(60): Store(sys.argv[1]).get('kind', {'i': i},"
        " lambda folder: (folder / 'data.bin').write_bytes(bytes([i]) * 5000) and None)"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, tmp_path], stderr=subprocess.PIPE) for _ in range(3)]
    for process in running:
        assert process.communicate()[1] == b""
    for i in range(60):
        path = Store(tmp_path).get("kind", {"i": i}, never)
        assert (path / "data.bin").read_bytes() == bytes([i]) * 5000
    assert list(tmp_path.glob("tmp-*")) == []


def test_a_folder_that_vanishes_while_leftovers_are_sought_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([self / "tmp-gone"]))
    Store(tmp_path).sweep()


def test_only_old_leftovers_of_killed_runs_are_removed(tmp_path):
    for name in ("tmp-old", "tmp-new"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / "tmp-old", (time.time() - 8 * 24 * 3600,) * 2)
    os.utime(tmp_path / "tmp-new", (time.time() - 6 * 24 * 3600,) * 2)  # a cell may take days
    Store(tmp_path).sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["tmp-new"]


def test_what_an_unfinished_entry_keeps_outlives_its_process_and_not_the_entry(tmp_path):
    store = Store(tmp_path)
    for name in ("made", "killed after it", "unfinished", "forgotten"):
        kept = store.unfinished("kind", key_of({"name": name}))
        kept.mkdir(parents=True)
        (kept / "checkpoint").touch()
    for name in ("made", "killed after it"):
        store.get("kind", {"name": name}, write(name))
    assert not store.unfinished("kind", key_of({"name": "made"})).exists()
    left = {name: store.unfinished("kind", key_of({"name": name})) for name in ("killed after it", "forgotten")}
    left["killed after it"].mkdir()
    os.utime(left["forgotten"], (time.time() - 31 * 24 * 3600,) * 2)
    assert sorted(store.sweep()) == sorted(left.values())
    assert [*(tmp_path / "unfinished").iterdir()] == [store.unfinished("kind", key_of({"name": "unfinished"}))]
    assert store.keys("kind") == {key_of({"name": name}) for name in ("made", "killed after it")}


def test_others_may_read_an_entry(tmp_path):
    assert Store(tmp_path).get("kind", SPEC, write("content")).stat().st_mode & 0o777 == 0o755


def test_an_entry_without_receipt_is_named(tmp_path):
    path = Store(tmp_path).get("kind", SPEC, write("content"))
    (path / "receipt.json").unlink()
    with pytest.raises(UserError, match=r"has no receipt: delete it and run again"):
        Store(tmp_path).get("kind", SPEC, write("content"))
    shutil.rmtree(path)
    assert Store(tmp_path).get("kind", SPEC, write("content")) == path


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_an_unreadable_receipt_is_named(tmp_path, content):
    path = Store(tmp_path).get("kind", SPEC, write("content"))
    (path / "receipt.json").write_bytes(content)
    with pytest.raises(UserError, match=f"store entry {path} is unreadable .*: delete it and run again"):
        Store(tmp_path).get("kind", SPEC, never)


def test_a_byte_changed_in_place_is_found_by_a_process_that_has_read_the_file(tmp_path):
    path = Store(tmp_path).get("kind", SPEC, write("content")) / "data.txt"
    before = path.stat()
    assert intact(path, Path.read_text) == "content"
    known = store_module._digest.cache_info()
    assert intact(path, Path.read_text) == "content"
    assert store_module._digest.cache_info()[:2] == (known.hits + 1, known.misses)  # not read again
    time.sleep(0.02)
    with open(path, "r+b") as file:
        file.write(b"C")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(
        UserError, match=f"store file {path} is damaged .its bytes are not .*: delete the folder {path.parent} "
    ):
        intact(path, Path.read_text)
    path.write_text("conten")
    with pytest.raises(UserError, match=r"is damaged \(it has 6 bytes, 7 were written\)"):
        intact(path, Path.read_text)
    (path.parent / "more.txt").write_text("more")
    with pytest.raises(UserError, match=r"more.txt is damaged \(its receipt does not list it\)"):
        intact(path.parent / "more.txt", Path.read_text)


def test_a_missing_file_is_found_by_whoever_asks_for_the_entry(tmp_path):
    path = Store(tmp_path).get("kind", SPEC, write("content"))
    (path / "data.txt").unlink()
    message = f"store entry {path} is damaged .data.txt is missing.: delete the folder {path} and run again"
    for ask in (Store(tmp_path).receipt, Store(tmp_path).path):
        with pytest.raises(UserError, match=message):
            ask("kind", path.name)
    with pytest.raises(UserError, match=message):
        Store(tmp_path).get("kind", SPEC, never)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"note": "other"}, "its receipt was changed"),
        ({"note": None}, "its receipt was changed"),
        ({"sha256": "0" * 64}, "its receipt was changed"),
        ({"kind": "other"}, r"it is the entry other/\w+"),
        ({"key": "f" * 64}, f"it is the entry kind/{'f' * 64}"),
        ({"spec": {"model": "other"}}, "its key is not that of its specification"),
    ],
)
def test_a_receipt_that_is_not_the_entrys_own_is_refused(tmp_path, change, message):
    """The last three are of another entry, with a digest that is right."""
    path = Store(tmp_path).get("kind", SPEC, write("content"))
    receipt = json.loads((path / "receipt.json").read_text()) | change
    if not change.keys() & {"note", "sha256"}:
        receipt["sha256"] = key_of({name: value for name, value in receipt.items() if name != "sha256"})
    (path / "receipt.json").write_text(json.dumps(receipt))
    with pytest.raises(
        UserError, match=rf"store entry {path} is damaged \({message}\): delete the folder .* and run again$"
    ):
        Store(tmp_path).receipt("kind", path.name)


@pytest.mark.parametrize(
    "change",
    [
        *({"files": files} for files in (None, ["data.txt"], {"data.txt": 7}, {"data.txt": {}}, ...)),
        *({name: ...} for name in ("kind", "key", "spec")),
    ],
)
def test_a_receipt_of_another_form_is_refused_though_its_digest_is_right(tmp_path, change):
    path = Store(tmp_path).get("kind", SPEC, write("content"))
    receipt = json.loads((path / "receipt.json").read_text()) | change
    receipt = {name: value for name, value in receipt.items() if value is not ... and name != "sha256"}
    (path / "receipt.json").write_text(json.dumps(receipt | {"sha256": key_of(receipt)}))
    with pytest.raises(UserError, match=rf"store entry {path} is damaged \(its receipt lacks what every one holds\): "):
        Store(tmp_path).receipt("kind", path.name)


def older(path: Path) -> None:
    """Make an entry's receipt as older versions wrote it."""
    receipt = json.loads((path / "receipt.json").read_text())
    (path / "receipt.json").write_text(json.dumps({k: v for k, v in receipt.items() if k not in ("files", "sha256")}))


def test_a_receipt_that_lists_no_files_is_refused(tmp_path):
    path = Store(tmp_path).get("kind", SPEC, write("content"))
    older(path)
    with pytest.raises(
        UserError, match=r"lists no files, for an older version wrote it.*: delete .*foolbench store seal"
    ):
        Store(tmp_path).get("kind", SPEC, never)


def test_a_store_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(UserError, match=f"the store {root} cannot be made: "):
            Store(root)


def test_a_change_of_code_is_a_change_of_key(monkeypatch):
    code = ("benchmark.entries", "benchmark.models")
    before = source_digest(code)
    read, changed = Path.read_bytes, store_module.__file__.replace("store.py", "entries/scoring.py")
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + (b"#" if str(path) == changed else b""))
    assert source_digest.__wrapped__(code) != before
    assert source_digest.__wrapped__(("benchmark.models",)) == source_digest(("benchmark.models",))
    assert len(before) == 16


def test_leftovers_of_this_machines_dead_processes_are_removed_at_once(tmp_path):
    program = (
        "import os, sys; from benchmark.store import Store; Store(sys.argv[1]).get('kind', {}, lambda _: os._exit(1))"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], check=False)
    (left,) = tmp_path.glob("tmp-*")
    parts = left.name.split("-")
    other = left.rename(tmp_path / "-".join(["tmp", "01234567", *parts[2:]]))  # of another machine
    mine = tmp_path / "-".join([*parts[:2], str(os.getpid()), "x"])
    for folder in (mine, left):
        folder.mkdir()
    Store(tmp_path).sweep()
    assert sorted(tmp_path.iterdir()) == sorted([other, mine])


@pytest.mark.parametrize(
    ("kind", "file", "view"),
    [("models", "weights.safetensors", "clean_model"), ("originals", "heatmaps.npy", "original_maps")],
)
@pytest.mark.parametrize("damage", [b"", b"\x80\x04nonsense", None], ids=["empty", "foreign", "cut short"])
def test_a_damaged_file_is_named_with_what_helps(finished, tmp_path, kind, file, view, damage):
    from benchmark.cells import View
    from benchmark.entries.originals import original_maps
    from benchmark.entries.trained import clean_model

    run = finished.again(tmp_path, without=("scores", "manipulations")).run
    for path in (tmp_path / "store" / kind).glob(f"*/{file}"):
        path.write_bytes(path.read_bytes()[:-9] if damage is None else damage)
    read = {"clean_model": clean_model, "original_maps": original_maps}[view]
    place = "compact_vgg" if view == "clean_model" else View("compact_vgg", "grad_cam")
    with pytest.raises(UserError) as caught:
        read(run, place)
    message = rf"store file (.*/{kind}/\w+)/{file} is damaged \(.*\): delete the folder \1 and run again$"
    assert re.search(message, str(caught.value))
    assert "allow_pickle" not in str(caught.value)
