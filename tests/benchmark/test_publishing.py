"""The commands that read committed results, from their words to their output."""

import pytest

from attacks.errors import UserError
from benchmark import cli, publishing


def test_report_writes_a_site_and_says_where(boards, tmp_path, capsys):
    cli.report(out=tmp_path / "site", boards=boards)
    assert capsys.readouterr().out == f"{tmp_path / 'site' / 'index.html'}\n"
    assert "grad_cam" in (tmp_path / "site" / "index.html").read_text()
    with pytest.raises(UserError, match="is not replaced"):
        cli.report(out=tmp_path, boards=boards / "nowhere")  # said before anything is read


def test_compare_prints_a_table(boards, capsys):
    suite = boards / "tiny"
    cli.compare(str(suite), str(suite / "results"))
    first, head, *rows, note = capsys.readouterr().out.splitlines()
    assert first.startswith(f"A: {suite}, B: {suite / 'results'}; ")
    assert head.split()[0] == "interpreter"
    assert len(rows) == 4
    assert "does not say which images" in note
    cli.compare(str(suite), str(suite), form=publishing.Format.csv)
    told = capsys.readouterr()
    assert told.out.startswith("interpreter,cells,n_a")
    assert "does not say" in told.err
    with pytest.raises(UserError, match="unknown suite 'defualt': did you mean 'default'"):
        cli.compare("defualt", str(suite))
    with pytest.raises(UserError, match="no results: runs/gone is not a folder"):
        cli.compare("runs/gone", str(suite))
