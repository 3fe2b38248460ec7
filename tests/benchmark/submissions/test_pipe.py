"""A process says when it is ready; what it does not say in time, or after its end, is an error."""

from pathlib import Path

import pytest

from benchmark.submissions.keeper import keeper
from benchmark.submissions.pipe import Deadline, Process
from benchmark.submissions.wire import BrokenError

pytestmark = pytest.mark.usefixtures("temporary")


def test_a_process_is_ready_then_silent_then_gone_with_its_folder():
    process = Process(keeper(), memory_gib=2)
    try:
        assert process.receive(0, Deadline(60)) == ({"end": True}, {})
        assert process.runs()
        with pytest.raises(BrokenError, match=r"^gave no answer in 0\.1 s$"):
            process.receive(0, Deadline(0.1))
    finally:
        process.close()
    assert not process.runs()
    assert not Path(process.folder).exists()
    with pytest.raises(BrokenError, match=r"^its process was closed$"):
        process.receive(0, Deadline(1))
