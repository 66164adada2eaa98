"""`regcache doctor` names a CPU on which products would saturate."""

from __future__ import annotations

import json

import pytest

from regcache_deploy.cli import doctor
from regcache_deploy.cli.main import main


@pytest.mark.parametrize("saturates", [True, False])
def test_doctor_says_what_this_cpu_does(
    saturates: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "may_saturate", lambda: saturates)
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings["cpu_saturates"] is saturates
    assert any("VNNI" in text for text in findings["warnings"]) is saturates
