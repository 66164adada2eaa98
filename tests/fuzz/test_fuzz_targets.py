"""The fuzz targets take their seeds, simple damages of them, and things that are nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.kit import make_kit
from tests.fuzz.__main__ import NAMES
from tests.fuzz.targets import Target, attempt, targets

NOTHING = (b"", b"\0", b"\xff\xfe", b"[", b"{}", b"[]", b"null", b"1e999", b'"x"', b"[" * 100_000)
NUMBERS = (b"-1", b"0", b"1e9", b"NaN", b"true", b"null", b'"x"', b"[]", b"{}", b"9" * 40)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    kit = folder / "kit"
    kit.mkdir()
    return targets(make_kit(kit), folder)


def test_every_target_is_run(made: dict[str, Target]) -> None:
    assert sorted(NAMES) == sorted(made)


@pytest.mark.parametrize("name", NAMES)
def test_whole_seeds_and_damages(name: str, made: dict[str, Target]) -> None:
    target, draw = made[name], random.Random(0)
    for seed in target.seeds:
        attempt(target, seed)
        for damaged in _damaged(seed, draw):
            attempt(target, damaged)
    for data in NOTHING:
        attempt(target, data)


def _damaged(seed: bytes, draw: random.Random) -> Iterator[bytes]:
    for _ in range(25 if len(seed) < 20_000 else 5):
        data = bytearray(seed)
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(data))
            data[place : place + 1] = bytes([draw.randrange(256)])
        yield bytes(data)
        at = draw.randrange(len(seed))
        yield seed[:at]
        yield seed[:at] + draw.choice(NUMBERS) + seed[at + draw.randint(0, 4) :]
