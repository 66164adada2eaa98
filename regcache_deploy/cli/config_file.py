"""`--config FILE.yaml`: a file that holds what could stand on the command line.

The file is turned into command-line words and parsed by the command's own parser, so that types,
choices and messages are the same in both places. The words of the file come first: what the
command line says after them wins. What a command requires may stand in either, also its positional
argument, under its name (`bundle`, `plan`).
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from regcache_engines.documents import read_document

from ..compat import require
from ..errors import ConfigError
from ..run.finished import searched_options
from .common import Parser, did_you_mean

_SEVERAL = ("+", "*")

_NOT_IN_A_FILE = {"config", "help"}


def parse_with_config(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line whose `--config`, if there is one, supplies the other defaults.

    So does the run that an export takes its choice `--from`; a file's own words come after it.

    Raises:
        ConfigError: a usage mistake, on the command line or in the file.
    """
    with _nothing_required(parser):
        values = parser.parse_args(arguments)
        path = getattr(values, "config", None)
        if path is not None:
            words, positionals = read_config(path, parser)
            try:
                parser.parse_args([*chain(*positionals.values()), *words])
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from error
            # a positional is not overridden by a second one, so the file's gives way
            left = [found for name, found in positionals.items() if not getattr(values, name)]
            # an option behind a list ends it, before an argument of the line joins it
            arguments = [*chain(*left), *words, f"--config={path}", *arguments]
            values = parser.parse_args(arguments)
        run = getattr(values, "from_run", None)
        if run is not None:
            actions = parser._option_string_actions
            for name, value in searched_options(run).items():
                if value is not None:
                    option = name.replace("_", "-")
                    found = _words(run, option, value, actions[f"--{option}"])
                    arguments = [*found, *arguments]
    return parser.parse_args(arguments)


def read_config(path: Path, parser: Parser) -> tuple[list[str], dict[str, list[str]]]:
    """The file's content as command-line words, for example `["--limit=100", "--json"]`.

    Returns:
        Words of options, and the positional arguments by name.

    Raises:
        ConfigError: unreadable, no mapping, an unknown key, or a value of the wrong kind.
    """
    options = {
        option.removeprefix("--"): action
        for option, action in parser._option_string_actions.items()
        # the negative of a switch is written `name: false`; --no-fold is an option of its own
        if option.startswith("--") and not (option.startswith("--no-") and action.nargs == 0)
    }
    positional = {a.dest: a for a in parser._actions if not a.option_strings}
    words: list[str] = []
    positionals: dict[str, list[str]] = {}
    for key, value in _load_mapping(path).items():
        name = str(key).replace("_", "-")
        if name in positional and name not in options:
            if value is not None:
                positionals[name] = _some(path, name, value, positional[name])
            continue
        if name not in options or name in _NOT_IN_A_FILE:
            known = (options.keys() | positional.keys()) - _NOT_IN_A_FILE
            hint = did_you_mean(name, known)
            raise ConfigError(f"{path}: unknown key '{key}'{hint}")
        if value is not None:  # `limit:` with nothing behind it leaves the default
            words += _words(path, name, value, options[name])
    return words, positionals


@contextlib.contextmanager
def _nothing_required(parser: Parser) -> Iterator[None]:
    """Let `parser` read a part of what a command needs."""
    required = [action for action in parser._actions if action.required]
    for action in required:
        action.required = False
    try:
        yield
    finally:
        for action in required:
            action.required = True


def _words(path: Path, name: str, value: Any, action: argparse.Action) -> list[str]:
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ConfigError(f"{path}: {name} takes true or false, not {value!r}")
        if value:
            return [f"--{name}"]
        return [f"--no-{name}"] if f"--no-{name}" in action.option_strings else []
    if action.nargs == "+" and value == []:  # a default, as `--dry-run` prints it
        return []
    if action.nargs in _SEVERAL:
        return [f"--{name}", *_some(path, name, value, action)]
    return [f"--{name}={_one(path, name, value)}"]


def _some(path: Path, name: str, value: Any, action: argparse.Action) -> list[str]:
    """Words of an option or a positional argument, of which some take a list."""
    if isinstance(value, list) and action.nargs in _SEVERAL:
        return [_one(path, name, each) for each in value]
    return [_one(path, name, value)]


def _one(path: Path, name: str, value: Any) -> str:
    if isinstance(value, (bool, list, dict)):
        raise ConfigError(f"{path}: {name} takes one value, not {value!r}")
    word = str(value)
    if "\0" in word:  # a command line cannot hold it, and no file is named so
        raise ConfigError(f"{path}: {name} holds a null byte: {value!r}")
    return word


def _load_mapping(path: Path) -> dict[Any, Any]:
    yaml = require("yaml", "search")
    try:
        text = read_document(path)
        document = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"the configuration file {path} cannot be read: {reason}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or "it does not parse"
        raise ConfigError(f"{path} is not valid YAML: {place}{problem}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} has too many brackets in each other") from error
    except ValueError as error:  # a scalar that looks like a date and is none
        raise ConfigError(f"{path} is not valid YAML: {error}; quote the value") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        kind = type(document).__name__
        raise ConfigError(f"{path} must hold `option: value` lines, not a {kind}")
    keys = [str(key.value) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:  # YAML would silently take the last one
            raise ConfigError(f"{path}: '{key}' stands twice")
    if True in document and "on" in keys:  # what YAML 1.1 makes of the key
        document["on"] = document.pop(True)
    return document
