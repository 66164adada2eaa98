"""Write files and folders whole or not at all, and hash them."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to a hidden name beside `path`, flush it to disk, and rename.

    A reader sees the old file or the new one, also after a power cut; a failure leaves no draft,
    and what a killed process left is overwritten by the next that writes `path`.

    Raises:
        OSError: the disk refuses, or what is there is no file: a device or a pipe would be gone.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "it is no regular file", str(path))
    draft, handle = _draft_of(path)
    posix = os.name == "posix"  # elsewhere no open file is renamed
    try:
        with os.fdopen(handle, "wb", closefd=not posix) as file:
            file.truncate()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, 0o666 & ~_umask())
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    finally:
        if posix:
            os.close(handle)
    sync_folder(path.parent)


def _draft_of(path: Path) -> tuple[str, int]:
    """Name and handle of a file that nobody else writes to while the handle is open.

    The name is the same for every process, so that a killed one's is used again, and locked;
    where somebody else has it, it is a fresh one.
    """
    if os.name == "posix":
        name = path.parent / f".{path.name}.draft"
        handle = _own_draft(name)
        if handle is not None:
            return str(name), handle
    handle, fresh = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    return fresh, handle


def _own_draft(name: Path) -> int | None:
    """Handle of the file of that name, made where there is none; None where it is not ours."""
    flags, made = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, True
    try:
        handle = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        made = False
        try:
            handle = os.open(name, flags)
        except OSError:
            return None
    except OSError:
        return None
    if _is_ours(name, handle, made):
        return handle
    os.close(handle)
    return None


def _is_ours(name: Path, handle: int, made: bool) -> bool:
    """Whether this file, `made` a moment ago or found, is what nobody else can write to.

    One that was found may be a killed process' of this user, which gave its lock up; another user
    could have opened it before. Some systems have no locks: what was made is used all the same,
    since nobody takes it over without a lock.
    """
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        if not made:
            return False
    own = os.fstat(handle)
    try:
        there = os.lstat(name)
    except OSError:  # whoever had it has just given it its own name
        return False
    alone = os.path.samestat(own, there) and stat.S_ISREG(own.st_mode) and own.st_nlink == 1
    return alone and (made or own.st_uid == os.geteuid())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, where the system can: a rename is one of them."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError:  # nor does every network file system flush them
        pass
    finally:
        os.close(handle)


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` that takes its place if the body succeeds, else vanishes.

    A folder that is there is exchanged for the new one in one step, where the system can; killed at
    any time, this leaves the old one or the new one. What a killed process left behind is cleared
    away by the next that stages the same path. A link stays one: what it leads to is exchanged.

    Raises:
        OSError: the folder cannot be written or exchanged.
    """
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path)
    staging, lock = _make_staging(path)
    try:
        yield staging
        staging.chmod(0o777 & ~_umask())  # mkdtemp makes folders that nobody else can read
        sync_folder(staging)
        _take_place(staging, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # the old folder, if they were exchanged
        if lock is not None:
            os.close(lock)


def exchange(one: Path, other: Path) -> bool:
    """Swap the names of two files or folders in one step.

    Returns:
        False where this system or file system cannot; nothing has happened then.

    Raises:
        OSError: it can, and refused.
    """
    libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    rename = getattr(libc, "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _umask() -> int:
    """Read, where the system tells: setting it to look would be seen by other threads' files."""
    with suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        return int(status.split("\nUmask:", 1)[1].split(None, 1)[0], 8)
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


def _make_staging(path: Path) -> tuple[Path, int | None]:
    """A fresh folder, and the lock that says that its maker lives."""
    while True:
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.new.", dir=path.parent))
        lock = _lock(staging, wait=True)
        if staging.is_dir():
            return staging, lock
        if lock is not None:  # it was taken for an orphan before it was locked
            os.close(lock)


def _lock(folder: Path, wait: bool) -> int | None:
    """A handle that holds the folder until it is closed or its process ends.

    Returns:
        None where somebody else holds it, or where this system has no such locks.
    """
    if os.name != "posix":
        return None
    import fcntl

    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        return None
    return handle


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make the folder, if need be, and be alone in it: waits for another process that holds it.

    Files get their names in one step whoever writes them; this is for work that goes through
    several files of fixed names. A process that ends lets go.
    """
    with suppress(OSError):  # whoever writes there says so in the words of what is written
        folder.mkdir(parents=True, exist_ok=True)
    handle = _lock(folder, wait=True)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def gone_at_the_end(folder: Path) -> Iterator[None]:
    """Remove a draft however the block ends; one that has got its own name by then stays."""
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _take_place(staging: Path, path: Path) -> None:
    """Rename `staging` to `path`; what was there is `staging` afterwards, or gone."""
    if not path.exists():
        staging.rename(path)
        return
    if exchange(staging, path):
        return
    # a folder cannot be renamed over a full one: the old one steps aside, and comes back if the
    # second rename fails, or from `clear_leftovers` if this process is killed in between
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    path.rename(aside)
    try:
        staging.rename(path)
    except OSError:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def clear_leftovers(path: Path) -> None:
    """Remove what killed processes left beside `path`, and give a lost old folder its name back.

    Raises:
        OSError: the folder around it cannot be read.
    """
    for kind in ("old", "new"):
        prefix = f".{path.name}.{kind}."
        for found in sorted(path.parent.iterdir()):
            if not found.name.startswith(prefix) or found.is_symlink() or not found.is_dir():
                continue
            lock = _lock(found, wait=False)
            if lock is None:  # its process lives, or nobody can tell
                continue
            try:
                if kind == "old" and not path.exists() and any(found.iterdir()):
                    found.rename(path)
                else:
                    shutil.rmtree(found, ignore_errors=True)
            finally:
                os.close(lock)
