"""Where results may go."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from regcache_deploy.errors import ConfigError
from regcache_deploy.work.paths import require_writable_file
from regcache_engines.files import atomic_write_bytes


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """Nor a device: as root, `--csv /dev/stdout` would leave the machine without one."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(ConfigError, match=f"--csv {path} is no file that could be replaced"):
            require_writable_file(path, "--csv")
        with pytest.raises(FileExistsError, match="no regular file"):
            atomic_write_bytes(path, b"text")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_what_is_printed_to_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--csv /dev/stdout > FILE`: what is printed would go to a file without a name."""
    printed, other = tmp_path / "printed", tmp_path / "other"
    printed.write_text("")
    other.write_text("")
    monkeypatch.setattr(os, "fstat", lambda number: printed.stat())
    with pytest.raises(ConfigError, match="no file that could be replaced"):
        require_writable_file(printed, "--csv")
    require_writable_file(other, "--csv")
