"""One of the networks that a check is asked on."""

import pytest

from benchmark.submissions import checks
from benchmark.submissions.checks.setting import Case, make_cases


@pytest.fixture(scope="session")
def cases() -> list[Case]:
    """To be read only: each check works on copies."""
    return make_cases("cpu")


@pytest.fixture(scope="session")
def case(cases) -> Case:
    return next(case for case in cases if case.name == "compact_resnet")


@pytest.fixture
def resnet(case, monkeypatch) -> Case:
    """One of the three models, which is enough to fail on, and the only one that `run` asks about."""
    monkeypatch.setattr(checks, "make_cases", lambda device: [case])
    return case
