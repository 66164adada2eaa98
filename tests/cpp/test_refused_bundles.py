"""Damaged and hostile bundles: an error code and a sentence, no crash, no leak."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from regcache_engines import Bundle
from tests.cpp.damages import DAMAGES, repeat, with_text
from tests.cpp.programs import run


@pytest.mark.parametrize("what", DAMAGES)
def test_refused(what: str, release: Path, sanitized: Path, bundle: Path, tmp_path: Path) -> None:
    status, damage = DAMAGES[what]
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged.regcache"))
    damage(damaged)
    for folder in (release, sanitized):
        done = run(folder / "regcache_dump", damaged, tmp_path / "out")
        assert done.stdout.startswith(f"REGCACHE_{status} "), done.stdout
        assert done.returncode == (7 if status.startswith("RUNTIME") else 5)
        assert len(done.stdout.split()) > 3, "no message"


@pytest.mark.parametrize("entry", [b'"schema": 1', b'"model": "twice"'])
def test_the_last_of_two_equal_keys_counts_as_in_python(
    entry: bytes, sanitized: Path, bundle: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(bundle, tmp_path / "twice.regcache"))
    repeat(entry)(changed)
    Bundle.open(changed)
    done = run(sanitized / "regcache_dump", changed, tmp_path / "out")
    assert done.stdout == "ok\n"


def test_a_bundle_with_a_text_tower_opens(
    release: Path, sanitized: Path, bundle: Path, tmp_path: Path
) -> None:
    made = Path(shutil.copytree(bundle, tmp_path / "text.regcache"))
    with_text(made)
    (made / "text/.DS_Store").write_bytes(b"hidden files are ignored")
    assert Bundle.open(made).has_text
    for folder in (release, sanitized):
        assert run(folder / "regcache_dump", made, tmp_path / "out").stdout == "ok\n"


def test_a_bundle_behind_a_link_or_an_odd_name_opens(
    sanitized: Path, bundle: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "\udcff ü.regcache"
    shutil.copytree(bundle, odd)
    (tmp_path / "link.regcache").symlink_to(odd)
    for path in (odd, tmp_path / "link.regcache"):
        done = run(sanitized / "regcache_dump", path, tmp_path / "out")
        assert done.stdout == "ok\n"
