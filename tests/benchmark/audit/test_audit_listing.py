"""Which files an audit looks at: never the same image on both sides; what cannot be used is one clear line."""

import json
import os
import re
import shutil

import pytest
from audited import write

from attacks.errors import UserError
from benchmark.audit.listing import find


def paths(files) -> set[str]:
    return {str(file.path) for file in files}


def test_a_folder_of_classes_is_halved_and_the_halves_share_no_image(folder):
    shutil.copy(folder / "ape" / "0.png", folder / "bee" / "again.png")
    found = find(folder, 200)
    assert (len(found.held), len(found.attacked), found.parted) == (10, 10, False)
    assert found.classes == ("ape", "bee")
    assert found.labelled
    assert all(file.path.parent.name == found.classes[file.label] for file in (*found.held, *found.attacked))
    contents = [file.path.read_bytes() for file in (*found.held, *found.attacked)]
    assert len(set(contents)) == len(contents) == 20
    assert find(folder, 200) == found
    assert paths(find(folder, 8).held) < paths((*found.held, *found.attacked))
    assert paths(find(folder, 200, seed=1).held) != paths(found.held)


def test_a_folder_that_keeps_images_apart_is_taken_at_its_word(tmp_path):
    write(tmp_path / "train", 6)
    write(tmp_path / "val", 5, ("ape", "bee"))
    for path in (tmp_path / "val" / "ape").iterdir():  # the same as in train
        path.unlink()
    write(tmp_path / "val2", 4, ("ape",))
    for i, path in enumerate((tmp_path / "val2" / "ape").iterdir()):
        path.write_bytes(path.read_bytes() + bytes([i]))
        shutil.move(path, tmp_path / "val" / "ape" / f"x{i}.png")
    shutil.rmtree(tmp_path / "val2")
    for i, path in enumerate((tmp_path / "val" / "bee").iterdir()):
        path.write_bytes(path.read_bytes() + bytes([i]))
    found = find(tmp_path, 200)
    assert found.parted
    assert {file.path.parts[-3] for file in found.held} == {"val"}
    assert {file.path.parts[-3] for file in found.attacked} == {"train"}


def test_classes_keep_their_rank_in_imagenets_index(folder):
    table = {"0": ["cow", "a cow"], "1": ["bee", "a bee"], "2": ["ape", "an ape"]}
    (folder / "imagenet_class_index.json").write_text(json.dumps(table))
    found = find(folder, 200)
    assert found.classes == ("a cow", "a bee", "an ape")
    assert {(file.path.parent.name, file.label) for file in found.held} == {("ape", 2), ("bee", 1)}


def test_images_without_classes_have_no_labels(folder):
    for path in list(folder.rglob("*.png")):
        path.rename(folder / f"{path.parent.name}-{path.name}")
    shutil.rmtree(folder / "ape")
    shutil.rmtree(folder / "bee")
    found = find(folder, 12)
    assert (len(found.held), len(found.attacked), found.labelled, found.classes) == (6, 6, False, ())


def test_a_table_names_paths_below_its_own_folder_and_labels(folder):
    rows = [f"{path.relative_to(folder)},{7 if 'bee' in str(path) else 3}" for path in sorted(folder.rglob("*.png"))]
    (folder / "all.csv").write_text("\n".join(["path,label", *rows]))
    found = find(folder / "all.csv", 200)
    assert {(file.path.parent.name, file.label) for file in (*found.held, *found.attacked)} == {("ape", 3), ("bee", 7)}
    (folder / "all.csv").write_text("\n".join(["path", *[row.split(",")[0] for row in rows]]))
    assert not find(folder / "all.csv", 200).labelled


def test_what_is_no_image_of_a_class_is_named(folder):
    (folder / "bee" / "deep").mkdir()
    shutil.move(folder / "bee" / "0.png", folder / "bee" / "deep" / "0.png")
    (folder / ".far").mkdir()
    shutil.move(folder / "bee" / "1.png", folder / ".far" / "1.png")
    (folder / "bee" / "link").symlink_to("../.far")
    (folder / "bee" / "again").symlink_to("..")  # in a circle
    for name in ("loose.png", "ape/a.heic", "ape/.hidden"):
        (folder / name).write_bytes(b"1")
    found = find(folder, 200)
    assert found.ignored == ("ape/a.heic", "loose.png")
    assert found.left_out.endswith(": ape/a.heic and 1 more")
    both = (*found.held, *found.attacked)
    assert sorted(file.path.name for file in both if file.label == 1) == [f"{i}.png" for i in range(10)]
    assert len(both) == 20


def test_folders_beside_the_parts_are_named(tmp_path):
    write(tmp_path / "train", 9)
    for part in ("test", "val", "more"):
        write(tmp_path / part, 9)
        for path in (tmp_path / part).rglob("*.png"):
            path.write_bytes(path.read_bytes() + part.encode())
    assert find(tmp_path, 200).ignored == ("more", "val")


@pytest.mark.parametrize("text", ["path, label", "\ufeffpath,label\r\n", "path,label,of\n\n"])
def test_a_table_is_read_as_people_write_it(folder, text):
    rows = [f"{path.relative_to(folder)}, {int('bee' in str(path))}" for path in sorted(folder.rglob("*.png"))]
    rows = [row + ",x" for row in rows] if text.endswith("of\n\n") else rows
    (folder / "all.csv").write_bytes("\n".join([text, *rows]).encode())
    found = find(folder / "all.csv", 200)
    assert {(file.path.parent.name, file.label) for file in (*found.held, *found.attacked)} == {("ape", 0), ("bee", 1)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("absent", "there is no such folder or CSV file"),
        ("empty", "the folder holds no image (.jpg, .jpeg"),
        ("one", "all images are of one class only ('ape'); at least two are needed"),
        ("few", "at least 8 different images are needed, 4 of them held out (got 2 to attack with and 2 held out)"),
        ("strange", "class folder 'ape' is not in imagenet_class_index.json"),
        ("no_column.csv", "needs a first line with the column path, and label if there are any (got file)"),
        ("no_file.csv", "line 2: no file"),
        ("no_label.csv", "line 2: label must be the index of a class, 0, 1, ... (got 'ape')"),
        ("same.csv", "the held-out images are of one class only ('3'); at least two are needed"),
        ("bytes.csv", "must be a folder of images or a CSV file ("),
        ("other.csv", "'labels': did you mean 'label'? allowed: label, path"),
        ("twice.csv", "must have one column label (got path, label, label)"),
        ("long.csv", "line 2: it has more fields than the first line"),
        ("short.csv", "line 3: label must be the index of a class, 0, 1, ... (got '')"),
        ("huge.csv", "line 2: label must be the index of a class, 0, 1, ... (got '99999999999999999999')"),
        ("both.csv", "line 5: 0.png has the label 4, and above 3"),
        ("spelt.csv", "line 3: 0.png has the label 4, and above 3"),
        ("quote.csv", "must be a folder of images or a CSV file ("),
        ("head.csv", "names no image"),
        ("loose", "the folder holds no image (.jpg"),
        ("second", "all images are of one class only ('bee'); at least two are needed"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(tmp_path, given, message):
    (tmp_path / "empty" / "ape").mkdir(parents=True)
    write(tmp_path / "one", 9, ("ape",))
    write(tmp_path / "few", 2)
    write(tmp_path / "strange", 5)
    (tmp_path / "strange" / "imagenet_class_index.json").write_text('{"0": ["bee", "bee"]}')
    (tmp_path / "no_column.csv").write_text("file\none/ape/0.png")
    (tmp_path / "no_file.csv").write_text("path\none/ape/77.png")
    (tmp_path / "spelt.csv").write_text("path,label\none/ape/0.png,3\none/../one/ape/0.png,4")
    (tmp_path / "no_label.csv").write_text("path,label\none/ape/0.png,ape")
    (tmp_path / "same.csv").write_text("path,label\n" + "\n".join(f"one/ape/{i}.png,3" for i in range(9)))
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    image = "one/ape/0.png"
    (tmp_path / "other.csv").write_text(f"path,labels\n{image},3")
    (tmp_path / "twice.csv").write_text(f"path,label,label\n{image},3,4")
    (tmp_path / "long.csv").write_text(f"path,label\n{image},3,4")
    (tmp_path / "short.csv").write_text(f"path,label\n{image},3\none/ape/1.png")
    (tmp_path / "huge.csv").write_text(f"path,label\n{image},{'9' * 20}")
    (tmp_path / "both.csv").write_text(f"path,label\n{image},3\n\n\n{image},4")
    (tmp_path / "quote.csv").write_text(f'path,label\n"{image},3')
    (tmp_path / "head.csv").write_text("path,label\n")
    (tmp_path / "loose" / "ape").mkdir(parents=True)
    shutil.copy(tmp_path / "one" / "ape" / "0.png", tmp_path / "loose")
    (tmp_path / "second" / "ape").mkdir(parents=True)
    shutil.copytree(tmp_path / "one" / "ape", tmp_path / "second" / "bee")
    with pytest.raises(UserError, match=f"^--data .*{re.escape(message)}[^\n]*$"):
        find(tmp_path / given, 200)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_called_an_image_and_is_no_file_is_refused_and_not_waited_for(folder, kind):
    path = folder / "ape" / "0.png"
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("absent")
    with pytest.raises(UserError, match=f"^{re.escape(str(path))} must be a file"):
        find(folder, 200)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every folder")
def test_a_folder_that_cannot_be_read_is_no_empty_one(folder):
    (folder / "ape" / "deep").mkdir(mode=0)
    with pytest.raises(PermissionError):
        find(folder, 200)
