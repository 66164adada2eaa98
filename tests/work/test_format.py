"""Figures as text."""

from __future__ import annotations

import pytest

from regcache_deploy.work.format import percent


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [
        (1.0, 1, "100.0 %"),
        (0.0, 2, "0.00 %"),
        (0.5, 0, "50 %"),
        (0.9996, 1, "99.96 %"),
        (49_999 / 50_000, 2, "99.998 %"),
        (0.996, 0, "99.6 %"),
        (1 / 50_000, 2, "0.002 %"),
        (1 - 1e-16, 2, "100.00 %"),
    ],
)
def test_a_share_is_not_rounded_to_all_or_none(share: float, digits: int, text: str) -> None:
    assert percent(share, digits) == text
