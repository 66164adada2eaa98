"""Every setting of an export is an option of `regcache export`, the recipe too."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields

import pytest

from regcache_deploy.cli import export
from regcache_deploy.cli.main import main
from regcache_deploy.run.options import ExportOptions


def test_no_setting_is_without_an_option() -> None:
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    options = {action.dest for action in parser._actions}
    assert {field.name for field in fields(ExportOptions)} <= options


@pytest.mark.parametrize(
    ("words", "needs"),
    [
        ("--budget 0.2", "--keep-float auto"),
        ("--max-drop 3", "--merge auto"),
        ("--merge 1 --max-drop 3", "--merge auto"),
        ("--merge-metric residual", "--merge"),
        ("--strategy exhaustive --budget-fraction 0.9", "--strategy default"),
        ("--no-two-counts --range-delete-count 6", "--no-two-counts"),
        ("--recipe paper --range-delete-count 6 --delete-count 2", "--recipe paper"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(
    words: str, needs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *words.split(), "--dry-run"]) == 2
    assert needs in capsys.readouterr().err
    read = "--no-two-counts --range-delete-count 2 --delete-count 2 --keep-float auto --budget 0.2"
    assert main(["export", *read.split(), "--dry-run", "--json"]) == 0
    capsys.readouterr()


def test_recipe_is_resolved_and_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--recipe", "paper", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == "paper"
    assert main(["export", "--recipe", "best", "--dry-run"]) == 2
    assert "--recipe best" in capsys.readouterr().err
