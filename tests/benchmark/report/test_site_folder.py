"""A site's folder is replaced whole, and only where it is one."""

import pytest

from attacks.errors import UserError
from benchmark.report import folder


def files(root) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_site_takes_the_place_of_the_one_before(tmp_path):
    site = tmp_path / "new" / "site"
    folder.write(site, {"index.html": b"1", "a/b.html": b"2"})
    folder.write(site, {"index.html": b"3"})
    assert {name: data for name, data in files(site).items() if name != folder.MARK} == {"index.html": b"3"}
    assert [path.name for path in site.parent.iterdir()] == ["site"]


def test_an_empty_folder_becomes_one(tmp_path):
    folder.write(tmp_path, {"index.html": b""})
    assert "index.html" in files(tmp_path)


def test_a_way_through_a_folder_that_is_not_there_makes_none(tmp_path):
    folder.write(tmp_path / "no" / ".." / "site", {"index.html": b""})
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


@pytest.mark.parametrize("below", [".", "in"])
def test_the_folder_that_one_is_in_is_not_taken_away(tmp_path, monkeypatch, below):
    (tmp_path / below).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / below)
    with pytest.raises(UserError, match="it is the folder that you are in"):
        folder.check(tmp_path)


def test_what_a_report_did_not_write_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match=r"is not replaced: thesis\.tex in it was not written by foolbench report"):
        folder.write(tmp_path, {"index.html": b""})
    site = tmp_path / "site"
    folder.write(site, {"a/index.html": b""})
    (site / "a" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"a/notes\.txt in it was not"):
        folder.check(site)
    assert (site / "a" / "notes.txt").read_text() == "mine"
    (site / "a" / "notes.txt").unlink()
    (site / folder.MARK).write_text("{")
    with pytest.raises(UserError, match=r"a/index\.html in it was not"):
        folder.check(site)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_neither_a_file_nor_a_link_is_a_folder(tmp_path, kind):
    target = tmp_path / "site"
    target.touch() if kind == "file" else target.symlink_to(tmp_path)
    with pytest.raises(UserError, match=f"a {kind}"):
        folder.check(target)


def test_where_writing_fails_the_site_before_is_still_there(tmp_path, monkeypatch):
    site = tmp_path / "site"
    folder.write(site, {"index.html": b"1"})
    before, rename = files(site), folder.os.rename

    def full(source, target):
        if source.name == "site" and target == site:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(folder.os, "rename", full)
    with pytest.raises(UserError, match=r"cannot write .*site: No space left on device"):
        folder.write(site, {"index.html": b"2"})
    assert files(site) == before
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
