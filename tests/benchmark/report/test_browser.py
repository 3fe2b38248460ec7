"""A site in a real browser, from files: it sorts and filters, and asks for nothing outside its folder."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, Browser
from pages import Page

from benchmark.audit.findings import ATTACKS, INTERPRETERS, Audit
from benchmark.audit.page import page as audit_page
from benchmark.report import folder, site

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
COLUMN = "[...document.querySelectorAll('#{table} tbody tr:not([hidden])')].map(row => row.cells[{column}].textContent)"
CLICK = "document.querySelectorAll('#{table} th button')[{column}].click()"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def written(boards, tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("written") / "site"
    folder.write(where, site.build(boards))
    return where


def test_every_page_opens_without_a_complaint_or_a_request_outside(browser, written):
    paths = sorted(written.rglob("*.html"))
    for path in paths:
        browser.open(path.as_uri())
        assert browser.ask("document.querySelector('h1').textContent") in path.read_text()
        assert browser.complaints() == []
        assert {"style.css", "table.js"} <= {url.rpartition("/")[2] for url in browser.requests()}
        assert [url for url in browser.requests() if not url.startswith(written.as_uri())] == []
        assert (
            browser.ask("getComputedStyle(document.querySelector('.skip')).position") == "absolute"
        )  # it has its style
    assert len(paths) == 1 + 1 + 4 + 4


@pytest.mark.parametrize("name", ["index", "boards/tiny/index", "boards/tiny/models/compact_vgg-location-grad_cam"])
def test_no_page_is_wider_than_a_telephone_a_tablet_or_a_screen(browser, written, name):
    browser.open((written / f"{name}.html").as_uri())
    for width in (320, 820, 1440):
        browser.size(width, 900)
        assert browser.ask("document.documentElement.scrollWidth <= innerWidth"), width


def test_a_click_sorts_up_then_down_and_nothing_stands_last(browser, written):
    browser.open((written / "boards/tiny/index.html").as_uri())
    head = Page((written / "boards/tiny/index.html").read_bytes()).tables["ranking"][0]
    column, ranks = head.index("stability"), head.index("rank")
    asked = {"table": "ranking", "column": column}
    values = []
    for order in ("ascending", "descending"):
        browser.ask(CLICK.format(**asked))
        assert browser.ask(f"document.querySelectorAll('#ranking th')[{column}].getAttribute('aria-sort')") == order
        values.append([float(text.split()[0]) for text in browser.ask(COLUMN.format(**asked))])
    assert values[0] == sorted(values[0])
    assert values[1] == sorted(values[0], reverse=True)
    assert len(set(values[0])) > 1
    browser.ask(CLICK.format(table="ranking", column=ranks))
    texts = browser.ask(COLUMN.format(table="ranking", column=ranks))
    assert texts == sorted(texts, key=lambda text: (text == "", text))
    assert browser.ask("document.querySelectorAll('[aria-sort]').length") == 1
    browser.ask(CLICK.format(table="ranking", column=0))
    names = browser.ask(COLUMN.format(table="ranking", column=0))
    assert names == sorted(names)


def test_words_filter_rows_and_a_key_sorts(browser, written):
    browser.open((written / "interpreters/grad_cam.html").as_uri())
    whole = len(browser.ask(COLUMN.format(table="attacks", column=1)))
    type_in = "var field = document.querySelector('[aria-controls=attacks]'); field.value = '{}';"
    type_in += "field.dispatchEvent(new Event('input'))"
    browser.ask(type_in.format("TOP_K softplus"))
    kept = browser.ask(COLUMN.format(table="attacks", column=1))
    assert 0 < len(kept) < whole
    assert all("top_k" in text for text in kept)
    assert browser.ask("document.querySelector('.filter output').textContent") == f"{len(kept)} of {whole} rows"
    browser.ask(type_in.format("no such words"))
    assert browser.ask(COLUMN.format(table="attacks", column=1)) == []
    browser.ask(type_in.format(""))
    assert len(browser.ask(COLUMN.format(table="attacks", column=1))) == whole
    browser.ask("document.querySelector('#attacks th:nth-child(2) button').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
        )
    assert browser.ask("document.querySelector('#attacks th:nth-child(2)').getAttribute('aria-sort')") == "ascending"


def test_a_page_that_runs_something_of_its_own_is_stopped(browser, written, tmp_path):
    """So that the tests above can fail: the policy holds, and a complaint is heard."""
    page = (written / "index.html").read_text()
    for asset in ("style.css", "table.js", "icon.svg"):
        (tmp_path / asset).write_bytes((written / asset).read_bytes())
    (tmp_path / "index.html").write_text(page.replace("</body>", "<script>document.title = 'run'</script></body>"))
    browser.open((tmp_path / "index.html").as_uri())
    assert browser.ask("document.title") == "Boards · foolbench"
    assert "Content Security Policy" in " ".join(browser.complaints())


def test_the_page_of_an_audit_shows_its_maps_in_the_first_screen_and_asks_for_nothing(browser, tmp_path):
    name = "an_interpreter_of_a_long_name"
    row = {"interpreter": name, "verdict": "fooled", "fooling": "location", "way": "gradient", "attacked": name}
    row |= dict.fromkeys(INTERPRETERS[2:8], 0.5) | dict.fromkeys(INTERPRETERS[11:16], 1.0)
    maps = np.random.default_rng(0).random((6, 8, 8), np.float32)
    about = {"model": "net", "weights": "w" * 200, "data": "d", "attacked": 8, "held": 8, "labelled": True}
    about |= {"preprocess": "p", "device": "cpu", "versions": {"torch": "2"}}
    arrays = {
        "shown": np.zeros((6, 3, 9, 9), np.uint8),
        f"honest.{name}": maps,
        f"location.gradient.{name}.{name}": maps,
    }
    attacks, found = pd.DataFrame(columns=list(ATTACKS)), pd.DataFrame([row], columns=list(INTERPRETERS))
    settings = {"budget": 1.0, "minutes": 1, "seed": 0}
    path = tmp_path / "audit.html"
    path.write_text(audit_page(Audit(about, settings, attacks, found, None, 1.0, arrays)))
    for width in (320, 900, 1600):
        browser.size(width, 900)
        browser.open(path.as_uri())
        assert browser.complaints() == []
        assert [url for url in browser.requests() if not url.startswith("data:")] == [path.as_uri()]
        assert browser.ask("document.documentElement.scrollWidth <= innerWidth"), width
        assert browser.ask("[...document.images].every(image => image.naturalWidth > 0)")
        assert 0 < browser.ask("document.querySelector('.glance').getBoundingClientRect().bottom") < 900
