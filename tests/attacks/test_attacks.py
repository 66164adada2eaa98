"""A fixed part of the catalogue, and that the judge notices. `make faults` runs all of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from regcache_deploy.errors import ConfigError, DataError
from tests.attacks.__main__ import main
from tests.attacks.catalogue import FAULTS
from tests.attacks.fault import Fault, Outcome, Place
from tests.attacks.judge import execute
from tests.attacks.kit import Kit, make_kit
from tests.attacks.watch import read_trace

pytest.importorskip("onnxruntime")

QUICK = [fault for fault in FAULTS if fault.quick][::2]


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return make_kit(tmp_path_factory.mktemp("kit"))


def test_the_catalogue_has_a_hundred_faults_of_every_group() -> None:
    assert len({fault.id for fault in FAULTS}) == len(FAULTS) >= 100
    groups = Counter(fault.group for fault in FAULTS)
    assert groups.keys() == {
        *("weights", "models", "images", "configuration", "bundles", "numerics", "engines"),
        *("processes", "service"),
    }
    assert min(groups.values()) >= 5


@pytest.mark.parametrize("fault", QUICK, ids=lambda fault: fault.id)
def test_handled(fault: Fault, kit: Kit, tmp_path: Path) -> None:
    verdict = execute(fault, kit, tmp_path / "place")
    assert not verdict.wrong, verdict.outcome.err


def judged(act: object, kit: Kit, folder: Path, **row: object) -> str:
    """What the judge says of a made-up row."""
    values = {"group": "made-up", "name": "x", "what": "x", "error": ConfigError} | row
    fault = Fault(act=act, **values)  # type: ignore[arg-type]
    return "; ".join(execute(fault, kit, folder / "place").wrong)


def test_another_exit_code_is_noticed(kit: Kit, tmp_path: Path) -> None:
    said = judged(lambda place: ["exprot"], kit, tmp_path, error=DataError)
    assert "exit code 2, not 4" in said


def test_a_file_outside_is_noticed(kit: Kit, tmp_path: Path) -> None:
    def act(place: Place) -> list[str]:
        return ["export", "--config", str(place.outside / "secret")]

    assert "outside/secret" in judged(act, kit, tmp_path)


def test_what_is_left_changed_or_run_is_noticed(kit: Kit, tmp_path: Path) -> None:
    def act(place: Place) -> Outcome:
        place.out.mkdir()
        (place.out / "x.regcache").mkdir()
        (place.out / ".x.new").mkdir()
        (place.temporary / "scratch").write_bytes(b"")
        place.canary.write_bytes(b"")
        err = "Traceback (most recent call last):\nregcache: error: one two three four five"
        return Outcome(2, seconds=99.0, err=err)

    said = judged(act, kit, tmp_path)
    for words in ("is not a bundle", "half-written .x.new", "left in TMPDIR", "code of the input"):
        assert words in said
    for words in ("a traceback", "99.0 s", "left x.regcache"):
        assert words in said


def test_a_changed_input_is_noticed(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regcache_deploy.cli import check

    def act(place: Place) -> list[str]:
        path = place.given / "x.onnx"
        path.write_bytes(b"")
        monkeypatch.setattr(check, "read_model", lambda source: path.write_bytes(b"y") and b"")
        return ["check", str(path)]

    assert "changed among the inputs: x.onnx" in judged(act, kit, tmp_path)


def test_a_trace_tells_reading_from_writing() -> None:
    text = '7 openat(AT_FDCWD, "/a", O_RDONLY|O_CLOEXEC) = 3\n'
    text += '7 openat(AT_FDCWD, "/b", O_WRONLY|O_CREAT, 0666) = 4\n'
    text += '7 openat(AT_FDCWD, "/c", O_RDONLY) = -1 ENOENT (No such file or directory)\n'
    text += '7 openat(6</d/e>, "../f", O_RDWR|O_CREAT, 0600) = 7</d/f>\n'
    assert read_trace(text) == {("/a", False), ("/b", True), ("/d/f", True)}


def test_a_trace_shows_connections(kit: Kit, tmp_path: Path) -> None:
    text = "7 connect(8<UDP:[1]>, {sa_family=AF_INET, sin_port=htons(53), sin_addr=x}, 16) = 0\n"
    text += '7 connect(8<UNIX:[2]>, {sa_family=AF_UNIX, sun_path="/var/run/nscd/socket"}, 110) = 0'
    ((address, _),) = read_trace(text)
    assert address.startswith("network: {sa_family=AF_INET, sin_port=htons(53)")


def test_what_is_left_at_home_is_noticed(kit: Kit, tmp_path: Path) -> None:
    def act(place: Place) -> Outcome:
        for name in ("cache/regcache-deploy/a", "cache/other/deviceid"):
            path = place.home / name
            path.parent.mkdir(parents=True)
            path.write_bytes(b"")
        return Outcome(0)

    assert judged(act, kit, tmp_path, error=None) == "left at home: cache/other/deviceid"


def test_words_that_choose_no_fault_are_no_score(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["processes/kil1-export"]) == 2
    printed = capsys.readouterr()
    assert "no fault of the catalogue" in printed.err
    assert "0/0" not in printed.out
