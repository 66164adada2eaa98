"""From settings classes to a parser's arguments, and from parsed arguments to settings."""

from __future__ import annotations

import argparse
import json
import sys
import typing
from collections.abc import Collection, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from ..search.settings import FixedChoice, MergeSettings, SearchSettings

TITLES = {
    SearchSettings: "reading of the method; the first word is the default",
    FixedChoice: "fix a choice instead of searching it",
    MergeSettings: "fewer tokens: merge similar patches",
}

PUBLISHED = ("baseline", "bits", "observer")
"""What a search takes of the quantizer's settings."""


def add_settings(
    parser: argparse.ArgumentParser,
    settings: type,
    title: str | None = None,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
) -> argparse._ArgumentGroup:
    """Add an option for every field of a settings class, or for those named in `only`.

    Returns:
        Their group, for more of them.
    """
    group = parser.add_argument_group(title or TITLES.get(settings))
    types = typing.get_type_hints(settings)
    for field in fields(settings):
        if (only is None or field.name in only) and field.name not in without:
            _add(group, field, types[field.name])
    return group


def given(settings: type, values: argparse.Namespace) -> dict[str, Any]:
    """What the parsed arguments say of the fields of a settings class."""
    names = {field.name for field in fields(settings)}
    return {name: value for name, value in vars(values).items() if name in names}


def print_configuration(values: Mapping[str, Any], as_json: bool) -> None:
    """Print the resolved configuration on stdout; both forms are valid `--config` files."""
    if as_json:
        print(json.dumps(values, indent=1, default=str))
        return
    for name, value in values.items():
        if value is not None:
            # JSON is YAML, with the quotes that awkward strings need.
            sys.stdout.write(f"{name.replace('_', '-')}: {json.dumps(value, default=str)}\n")


def print_arguments(args: argparse.Namespace, **resolved: Any) -> None:
    """`print_configuration` for a command without settings classes."""
    values = {name: value for name, value in vars(args).items() if name not in _OF_THIS_CALL}
    print_configuration(values | resolved, args.json)


def _add(group: argparse._ArgumentGroup, field: Field[Any], kind: Any) -> None:
    option, text = f"--{field.name.replace('_', '-')}", field.metadata["help"]
    if kind is bool:
        group.add_argument(
            option, action=argparse.BooleanOptionalAction, default=field.default, help=text
        )
        return
    shown = "" if field.default in (None, "") else " (default %(default)s)"
    kinds = [each for each in typing.get_args(kind) or (kind,) if each is not type(None)]
    group.add_argument(
        option,
        type=kinds[0],
        default=field.default,
        metavar=field.metadata["metavar"] or _METAVARS.get(kinds[0]),
        help=text.replace("%", "%%") + shown,
    )


_OF_THIS_CALL = ("config", "dry_run", "json", "verbosity")

_METAVARS = {float: "X", int: "N", Path: "DIR"}
