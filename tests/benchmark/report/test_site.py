"""The pages of a site: every link leads to a page of it, nothing leads out, and they say what the tables say."""

import gzip
import hashlib
import io
import posixpath
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
from pages import Page

from attacks.errors import UserError
from benchmark.leaderboards import load
from benchmark.report import downloads, site
from benchmark.report.tables import number, slug, span

BOARD = "boards/tiny/index.html"
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'"
HOSTILE = """<script>alert('1')</script>"&amp;"""


@pytest.fixture(scope="session")
def files(boards) -> dict[str, bytes]:
    return site.build(boards)


def pages_of(files: dict[str, bytes]) -> dict[str, Page]:
    return {path: Page(data) for path, data in files.items() if path.endswith(".html")}


def check_links(files: dict[str, bytes]) -> None:
    """All of them: no page is out of reach, either."""
    pages, reached = pages_of(files), {"index.html"}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            assert parts[:2] == ("", ""), (path, link)  # neither a scheme nor a host
            below = posixpath.join(posixpath.dirname(path), unquote(parts.path))
            target = posixpath.normpath(below) if parts.path else path
            assert target in files, (path, link)
            assert not parts.fragment or unquote(parts.fragment) in pages[target].ids, (path, link)
            reached.add(target)
    assert reached == set(files)


def test_every_link_leads_into_the_site_and_every_file_is_reached(files):
    check_links(files)
    assert {BOARD, "interpreters/grad_cam.html", "boards/tiny/models/compact_vgg-location-grad_cam.html"} <= set(files)
    assert (
        len([path for path in files if "/models/" in path]) == 4
    )  # 2 foolings x 2 interpreters, whatever the strategy


def test_pages_run_nothing_of_their_own_and_ask_for_nothing_else(files):
    for path, page in pages_of(files).items():
        policies = [
            given["content"] for tag, given in page.elements if given.get("http-equiv") == "Content-Security-Policy"
        ]
        assert policies == [POLICY]
        assert [given["src"] for tag, given in page.elements if tag == "script"] == [
            "../" * path.count("/") + "table.js"
        ]
        assert not [tag for tag, _ in page.elements if tag in ("style", "iframe", "object", "embed", "form", "base")]
        assert not [name for _, given in page.elements for name in given if name == "style" or name.startswith("on")]
        assert len(set(page.ids)) == len(page.ids)
    assert b"url(" not in files["style.css"]
    assert b"@import" not in files["style.css"]


def test_what_a_board_says_stands_on_its_page(boards, files):
    stability, page = load(boards / "tiny", "stability"), Page(files[BOARD])
    for row in stability.itertuples():
        at = page.column("ranking", "interpreter").index(row.interpreter)
        ends = f"{row.stability:.2f} [{row.stability_low:.2f}, {row.stability_high:.2f}]"
        assert page.column("ranking", "stability")[at] == ends
        assert page.column("ranking", "why it is not ranked")[at] == ("" if pd.isna(row.reason) else row.reason)
    assert "4 interpreters, on compact_vgg, fooled by location, top_k; attacked: 2." in page.text
    assert "the loss is NaN" in Page(files["boards/tiny/models/compact_vgg-top_k-simple_grad_t.html"]).text
    scores = Page(files["boards/tiny/models/compact_vgg-top_k-simple_grad_t.html"])
    assert set(scores.column("scores", "failed")) == {"1"}  # of two seeds one diverged
    assert "alt" in {k for tag, given in page.elements if tag == "img" for k in given}


def test_a_fooled_model_shows_its_front_and_its_heatmaps_or_how_to_draw_them(files):
    drawn = Page(files["boards/tiny/models/compact_vgg-location-grad_cam.html"])
    assert [given["src"] for tag, given in drawn.elements if tag == "img"] == [
        "../../../boards/tiny/figures/heatmaps-compact_vgg-location-grad_cam.png"
    ]
    marks = [given for tag, given in drawn.elements if tag == "circle"]
    assert len(marks) == 2 * (3 + 2)  # of both strategies: three points on dev, two budgets on test
    other = Page(files["boards/tiny/models/compact_vgg-top_k-grad_cam.html"])
    command = "foolbench plot heatmaps --suite tiny --model compact_vgg --fooling top_k --attacked grad_cam:softplus"
    assert command in other.text


def test_the_same_tables_give_the_same_site(boards, files):
    assert site.build(boards) == files


def test_downloads_are_the_tables_with_their_digests(boards, files, monkeypatch):
    given = dict(zip(*(Page(files[BOARD]).column("data", name) for name in ("file", "sha256")), strict=True))
    for name in ("stability.csv", "aopc.parquet"):
        assert given[name] == hashlib.sha256(files[f"boards/tiny/data/{name}"]).hexdigest()
    assert files["boards/tiny/data/stability.csv"] == (boards / "tiny" / "stability.csv").read_bytes()
    parquet = pd.read_parquet(io.BytesIO(files["boards/tiny/data/aopc.parquet"]))
    pd.testing.assert_frame_equal(parquet, load(boards / "tiny", "aopc"))
    monkeypatch.setattr(downloads, "PACKED", 1000)
    monkeypatch.setattr(downloads, "LARGEST", 4000)
    fewer = site.build(boards)
    packed = fewer["boards/tiny/data/stability.csv.gz"]
    assert gzip.decompress(packed) == files["boards/tiny/data/stability.csv"]
    assert not [path for path in fewer if "/data/aopc" in path]
    told = dict(zip(*(Page(fewer[BOARD]).column("data", name) for name in ("file", "sha256")), strict=True))
    whole = (boards / "tiny" / "aopc.csv").read_bytes()
    assert told["aopc.csv, in the repository alone"] == hashlib.sha256(whole).hexdigest()
    check_links(fewer)


def changed(boards: Path, folder: Path, change) -> Path:
    """A copy of the boards whose CSVs were changed, table by table."""
    shutil.copytree(boards, folder)
    for path in folder.rglob("*.csv"):
        change(path.stem, pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=str)).to_csv(path, index=False)
    return folder


def test_names_are_text_whatever_they_hold(boards, tmp_path):
    files = site.build(changed(boards, tmp_path / "hostile", lambda _, table: table.replace("grad_cam", HOSTILE)))
    check_links(files)
    for page in pages_of(files).values():
        assert len([tag for tag, _ in page.elements if tag == "script"]) == 1
    assert HOSTILE in Page(files[BOARD]).column("ranking", "interpreter")
    assert HOSTILE in Page(files["index.html"]).column("interpreters", "interpreter")


def test_a_board_of_an_older_version_has_a_page(boards, tmp_path):
    kept = {
        "stability": ["interpreter", "stability", "reason"],
        "attacks": ["model", "fooling", "interpreter", "fsr", "n"],
    }
    kept |= {"transfer": ["model", "fooling", "attacked", "evaluated", "seed", "n", "fsr", "fsr_clean"]}
    older = changed(boards, tmp_path / "older", lambda name, table: table[kept.get(name, table.columns)])
    (older / "tiny" / "results" / "models.json").unlink()
    for name in ("fronts", "differences", "accuracy"):
        (older / "tiny" / f"{name}.csv").unlink()
    files = site.build(older)
    check_links(files)
    assert "no cards beside the tables" in Page(files[BOARD]).text
    columns = ["interpreter", "stability", "worst attack", "excess", "why it is not ranked"]
    assert Page(files[BOARD]).tables["ranking"][0] == columns


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("tiny/results/grad_cam.json", b"{", r"grad_cam\.json is not valid JSON"),
        ("tiny/results/grad_cam.json", b"[]", r"grad_cam\.json must hold a card \(got list\)"),
        ("tiny/stability.csv", b"a,b\n", r"is not a stability leaderboard: it lacks interpreter"),
        ("tiny/transfer.csv", b"model,n\nnet,many\n", r"line 2: n must be a number \(got many\)"),
        ("tiny/transfer.csv", b"model,fooling\nnet,location\n", r"it lacks attacked, evaluated"),
        ("tiny/stability.csv", b"interpreter,rank\nlrp,inf\n", r"line 2: rank must be a finite number \(got inf\)"),
        ("tiny/results/lrp_t.json", b'{"gate": {"net": 3}}', r"lrp_t\.json: gate must hold names and values"),
        ("tiny/results/lrp_t.json", b'{"options": []}', r"lrp_t\.json: options must hold names and values"),
    ],
)
def test_what_cannot_be_read_is_one_line(boards, tmp_path, path, content, message):
    shutil.copytree(boards, tmp_path / "bad")
    (tmp_path / "bad" / path).write_bytes(content)
    with pytest.raises(UserError, match=message):
        site.build(tmp_path / "bad")


@pytest.mark.parametrize(("where", "what"), [("", "holds no board"), ("nowhere", "is no folder")])
def test_without_a_board_there_is_nothing_to_report(tmp_path, where, what):
    with pytest.raises(UserError, match=f"nothing to report: .*{what}"):
        site.build(tmp_path / where)


def test_numbers_as_they_are_written():
    row = {"a": 0.5, "a_low": 0.25, "a_high": float("nan"), "b": 1.0, "b_low": 0.996, "b_high": 1.0}
    assert [span(row, "a"), span(row, "b"), span(row, "c")] == ["0.50", "1.00 [1.00, 1.00]", ""]
    assert [number(v, "d") for v in (3.0, None, float("nan"), "x", True)] == ["3", "", "", "x", "True"]
    assert number({"a": 1}) == "{'a': 1}"


def test_no_two_names_share_a_file():
    names = [
        ("a", "b-c"),
        ("a-b", "c"),
        ("a-b-c",),
        ("A-b-c",),
        ("a/b",),
        ("a:b",),
        (".a",),
        ("a",),
        ("../a",),
        ("x" * 300,),
    ]
    made = [slug(*name) for name in names]
    assert len(set(made)) == len(made)
    assert slug("compact_vgg", "top_k", "grad_cam") == "compact_vgg-top_k-grad_cam"
    assert all(len(name) < 100 and "/" not in name and not name.startswith((".", "-")) for name in made)
