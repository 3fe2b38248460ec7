"""A private folder is removed wherever it was moved to, and so is what was put in its place."""

import os

from benchmark.submissions.folder import remove


def test_a_folder_that_was_renamed_is_found_by_its_inode(tmp_path):
    folder, elsewhere = tmp_path / "own", tmp_path / "deeper" / "other"
    folder.mkdir()
    elsewhere.parent.mkdir()
    inode = os.open(folder, os.O_RDONLY)
    (folder / "kept").write_text("weights")
    (folder / "sub").mkdir()
    (folder / "sub" / "kept").write_text("weights")
    (folder / "link").symlink_to(tmp_path / "deeper")
    folder.chmod(0o500)
    folder.rename(elsewhere)
    folder.mkdir()
    (folder / "decoy").write_text("")
    remove(str(folder), inode)
    assert [path.name for path in tmp_path.rglob("*")] == ["deeper"]
