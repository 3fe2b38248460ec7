"""Leaderboards of random results, shared by the tests that draw them."""

from pathlib import Path

import pytest
from synthetic import make_results

from benchmark import leaderboards


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    make_results(folder / "results")
    leaderboards.write(folder)
    return folder
