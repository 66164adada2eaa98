"""Damaged and hostile bundles: an error code and a sentence, no crash, no leak."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from regcache_engines import Bundle
from regcache_engines.onnx_wire import has_external_data
from tests.cpp.damages import DAMAGES
from tests.cpp.damaging import entry, replace_file, text_of, with_text
from tests.cpp.programs import run
from tests.engines.test_onnx_wire import PLACES, model_with


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


ODD = {
    "group": b"\x0b\x0c",
    "long number": b"\x08\x81\x00",
    "number of 65 bits": b"\x08" + b"\xff" * 9 + b"\x02",
    "tag of 33 bits": b"\x8a\x80\x80\x80\x10\x00",
    "field 0": b"\x02\x00",
    "length beyond the end": b"\x0a\x7f",
    "length beyond memory": b"\x0a" + b"\xff" * 9 + b"\x01",
    "half a number": b"\x09\x00",
}


@pytest.mark.parametrize("what", [*PLACES, *ODD])
def test_weights_outside_of_the_model_are_found_as_in_python(
    what: str, release: Path, sanitized: Path, bundle: Path, tmp_path: Path
) -> None:
    """Before ONNX Runtime sees it: 1.21, for one, opens what is named by its whole path."""
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged.regcache"))
    data = (bundle / "model.onnx").read_bytes() + ODD.get(what, b"")
    if what in PLACES:
        data = model_with(what, external=True).SerializeToString()
    replace_file(damaged, "model.onnx", data)
    assert has_external_data(data)
    for folder in (release, sanitized):
        done = run(folder / "regcache_dump", damaged, tmp_path / "out")
        assert done.stdout.startswith("REGCACHE_RUNTIME_FAILED "), done.stdout
        assert "keeps weights in other files" in done.stdout


def nested(levels: int) -> bytes:
    return b'"x": ' + b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    "change",
    [
        entry(nested(99)),
        entry(b'"x": -0.0, "y": 1e-400, "z": ' + b"9" * 308),
        text_of("manifest.json", b"{", b"\xef\xbb\xbf{"),
        text_of("preprocess_cfg.json", b"{", b"\xef\xbb\xbf{"),
    ],
)
def test_what_is_odd_but_plain_opens_in_both(
    change: Callable[[Path], None], release: Path, bundle: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(bundle, tmp_path / "odd.regcache"))
    change(changed)
    Bundle.open(changed)
    assert run(release / "regcache_dump", changed, tmp_path / "out").stdout == "ok\n"


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
