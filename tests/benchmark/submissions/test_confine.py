"""What a process may read, and which system calls are refused, of both machines and without a process."""

import struct

import pytest

from benchmark.submissions.confine import READ, READ_FILE, but_for
from benchmark.submissions.seccomp import ALLOW, ERRNO, KEPT, LIMITS, MARKS, NATIVE, program


def test_all_but_one_folder_is_read(tmp_path):
    for name in ("package/boards/default", "package/code", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "package" / "file.py").touch()
    (tmp_path / "link").symlink_to("package/boards")
    names, package, kept = READ & ~READ_FILE, tmp_path / "package", str(tmp_path / "link")
    assert but_for(kept, str(tmp_path / "other")) == {str(tmp_path / "other"): READ}
    assert but_for(kept, str(package)) == {
        str(package): names,
        str(package / "code"): READ,
        str(package / "file.py"): READ,
    }
    assert but_for(kept, str(tmp_path)) == {
        str(tmp_path): names,
        str(tmp_path / "other"): READ,
        **but_for(kept, str(package)),
    }
    assert but_for(kept, str(tmp_path / "pack")) == {str(tmp_path / "pack"): READ}  # no folder above it


def run(filter_: bytes, number: int, architecture: int, first: int = 0) -> int:
    """What the kernel does with the filter: classic BPF, of the four instructions that are in it."""
    lines, at, held = list(struct.iter_unpack("=HBBI", filter_)), 0, 0
    while True:
        code, if_true, if_false, value = lines[at]
        at += 1
        if code == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            held = {0: number, 4: architecture, 16: first}[value]
        elif code in (0x15, 0x35):  # BPF_JMP | BPF_JEQ and BPF_JGE, | BPF_K
            at += if_true if (held == value if code == 0x15 else held >= value) else if_false
        else:
            assert code == 0x06  # BPF_RET | BPF_K
            return value


@pytest.mark.parametrize("machine", NATIVE)
def test_a_filter_refuses_what_stays_and_lets_all_else_through(machine):
    made, native, i386 = program(machine), NATIVE[machine], 0x40000003
    allowed = {number for number in range(512) if run(made, number, native) == ALLOW}
    assert set(range(512)) - allowed == {*KEPT[machine], *MARKS[machine]}
    assert {run(made, number, native) for number in KEPT[machine]} == {ERRNO | 1}
    assert {run(made, number, native) for number in MARKS[machine]} == {ERRNO}
    assert run(made, 0, i386) == run(made, 0x40000000 + 29, native) == ERRNO | 1
    assert [run(made, LIMITS[machine], native, process) for process in (0, 1)] == [ALLOW, ERRNO | 1]
    assert run(made, 1, native, 1) == ALLOW
