"""Files are written whole or not at all, whoever was killed or writes beside."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from regcache_engines.files import atomic_write_bytes

pytestmark = pytest.mark.skipif(os.name != "posix", reason="drafts are locked on POSIX alone")

KILLED = """
import os, signal, sys
from pathlib import Path
from regcache_engines.files import atomic_write_bytes
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
atomic_write_bytes(Path(sys.argv[1]), b"of the killed " * 99)
"""


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_what_a_killed_process_left_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".report.html.draft"]
    atomic_write_bytes(path, b"whole")
    assert (names(tmp_path), path.read_bytes()) == (["report.html"], b"whole")


def test_two_that_write_at_once_do_not_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flush, between = tmp_path / "x", os.fsync, [b"second"]

    def flush_late(handle: int) -> None:
        if between:
            atomic_write_bytes(path, between.pop())
        flush(handle)

    monkeypatch.setattr(os, "fsync", flush_late)
    atomic_write_bytes(path, b"the first")
    assert (names(tmp_path), path.read_bytes()) == (["x"], b"the first")


def test_many_threads_leave_one_whole_file(tmp_path: Path) -> None:
    path, wrong = tmp_path / "x", list[bytes]()
    atomic_write_bytes(path, b"0" * 1000)

    def work(letter: bytes) -> None:
        for size in range(1, 60):
            atomic_write_bytes(path, letter * (1000 * size))
            found = path.read_bytes()
            if len(set(found)) != 1 or len(found) % 1000:
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("kind", ["link", "second name", "folder", "pipe"])
def test_what_only_looks_like_a_draft_is_left_alone(kind: str, tmp_path: Path) -> None:
    other, draft = tmp_path / "other", tmp_path / ".x.draft"
    other.write_bytes(b"mine")
    if kind == "link":
        draft.symlink_to(other)
    elif kind == "second name":
        os.link(other, draft)
    elif kind == "folder":
        draft.mkdir()
    else:
        os.mkfifo(draft)
    atomic_write_bytes(tmp_path / "x", b"whole")
    assert (tmp_path / "x").read_bytes() == b"whole"
    assert other.read_bytes() == b"mine"
    assert names(tmp_path) == [".x.draft", "other", "x"]


def test_a_failure_leaves_the_old_file_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    atomic_write_bytes(path, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write_bytes(path, b"new")
    assert (names(tmp_path), path.read_bytes()) == (["x"], b"old")


def test_threads_that_meet_at_a_draft_leave_no_open_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    path, lock, opened = tmp_path / "x", fcntl.flock, list[int]()

    def lock_late(handle: int, flags: int) -> None:
        opened.append(handle)
        (tmp_path / ".x.draft").rename(path)  # by whom it was opened, and closed, before
        lock(handle, flags)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    atomic_write_bytes(path, b"whole")
    assert (names(tmp_path), path.read_bytes()) == (["x"], b"whole")
    for handle in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)


def test_a_file_system_without_locks_keeps_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def no_locks(handle: int, flags: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for _ in range(2):
        atomic_write_bytes(tmp_path / "x", b"whole")
        assert names(tmp_path) == ["x"]
    (tmp_path / ".x.draft").write_bytes(b"of whom? ")
    atomic_write_bytes(tmp_path / "x", b"again")
    assert (tmp_path / "x").read_bytes() == b"again"


def test_another_users_draft_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, draft = tmp_path / "x", tmp_path / ".x.draft"
    draft.write_bytes(b"theirs")
    number = draft.stat().st_ino
    monkeypatch.setattr(os, "geteuid", lambda: draft.stat().st_uid + 1)
    atomic_write_bytes(path, b"whole")
    assert (path.read_bytes(), draft.read_bytes()) == (b"whole", b"theirs")
    assert path.stat().st_ino != number
