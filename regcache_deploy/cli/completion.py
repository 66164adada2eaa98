"""Print a script that lets the shell complete commands and options.

It is made from the parsers themselves, so it knows every option of this version.
"""

from __future__ import annotations

import argparse
from importlib import import_module

from ..compat import require
from .common import Parser, add_common_arguments

HELP = "completion for bash, zsh or tcsh (--help says how to install it)"

EXAMPLES = """\
  regcache completion bash > ~/.local/share/bash-completion/completions/regcache
  regcache completion zsh > ~/.zsh/completions/_regcache    # a folder of $fpath"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `regcache completion`."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="whose completion")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the script. Returns 0; ConfigError where the extra is missing."""
    shtab = require("shtab", "completion")
    print(shtab.complete(whole_parser(), shell=args.shell))
    return 0


def whole_parser() -> Parser:
    """Every command below one parser, as the shell sees them."""
    from .main import COMMANDS

    whole = Parser(prog="regcache")
    commands = whole.add_subparsers(dest="command")
    for name in COMMANDS:
        module = import_module(f".{name}", __package__)
        module.add_arguments(commands.add_parser(name, help=module.HELP))
    return whole
