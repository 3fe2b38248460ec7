"""The pages: links lead somewhere, commands and their options exist, and the README opens with what it should."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmark import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: Any = typer.main.get_command(cli.app)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in headings(found), f"{page.name}: {target}"


def used(text: str) -> list[list[str]]:
    """The words of each foolbench command in a block of shell."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [each for line in lines for each in re.split(r"&&|\|", line.partition(" #")[0])]
    words = [shlex.split(command) for command in commands]
    starts = [next((i for i, word in enumerate(each) if Path(word).name == "foolbench"), None) for each in words]
    return [each[start + 1 :] for each, start in zip(words, starts, strict=True) if start is not None]


@each_page
def test_commands_and_their_options_exist(page):
    for words in used(page.read_text()):
        command, rest = COMMANDS, words
        while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
            assert rest[0] in command.commands, f"{page.name}: foolbench {' '.join(words)}"
            command, rest = command.commands[rest[0]], rest[1:]
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        unknown = {word.partition("=")[0] for word in rest if word.startswith("--")} - options - {"--help"}
        assert not unknown, f"{page.name}: foolbench {' '.join(words)}"


def test_the_readme_opens_with_the_question_a_picture_the_set_up_and_the_audit():
    text = (ROOT / "README.md").read_text()
    question = text.index("**Can a model's owner make your explanation lie without touching the accuracy?**")
    places = [question, text.index("!["), text.index("## Run it"), text.index("## Audit your own network")]
    assert places == sorted(places)
    assert text[: text.index("## Read more")].count("\n") < 55  # a screen
    linked = set(re.findall(r"\]\(docs/(\w[\w-]*)\.md\)", text))
    assert linked == {page.stem for page in PAGES[1:]}
