"""A page as a test reads it."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Its elements, in order, its ids, its text, and the rows of its tables by their id, as text."""

    def __init__(self, text: bytes) -> None:
        super().__init__()
        self.elements, self.text = list[tuple[str, dict[str, str]]](), ""
        self.tables, self._rows = dict[str, list[list[str]]](), list[list[str]]()
        self.feed(text.decode())
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.elements.append((tag, given))
        if tag == "table":
            self._rows = self.tables[given["id"]] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._rows and self._rows[-1]:
            self._rows[-1][-1] += data.rstrip("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._rows = []

    @property
    def ids(self) -> list[str]:
        return [given["id"] for _, given in self.elements if "id" in given]

    @property
    def links(self) -> list[str]:
        return [given[name] for _, given in self.elements for name in ("href", "src") if name in given]

    def column(self, table: str, name: str) -> list[str]:
        head, *rows = self.tables[table]
        return [row[head.index(name)] for row in rows]
