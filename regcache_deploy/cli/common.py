"""What every command shares: its parser, the common options, and where messages go."""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..compat import import_open_clip, require, require_installed
from ..errors import ConfigError
from ..work.format import plain
from ..work.progress import Reporter, stderr_console
from ..work.settings import MachineSettings, WorkerSettings

QUIET, NORMAL, VERBOSE = logging.WARNING, logging.INFO, logging.DEBUG

_OUR_LOGGERS = ("regcache_deploy", "regcache_export", "regcache_engines")
log = logging.getLogger(__name__)

_handlers: list[logging.Handler] = []  # ours on the root logger, exchanged by setup_logging


class Formatter(argparse.HelpFormatter):
    """Wraps paragraphs, and leaves lines that begin with two spaces as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = []
        for part in text.split("\n\n"):
            whole = any(line.startswith("  ") for line in part.splitlines())
            parts.append(part if whole else super()._fill_text(part, width, indent))
        return "\n\n".join(parts)


class Parser(argparse.ArgumentParser):
    """argparse that raises instead of exiting, and suggests the option that was meant."""

    def __init__(self, **keywords: Any) -> None:
        # An abbreviated option in a script breaks when a longer one is added.
        super().__init__(allow_abbrev=False, **{"formatter_class": Formatter} | keywords)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse `args`. Raises ConfigError for a usage mistake."""
        values, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].split("=")[0]
            known = [option for option in self._option_string_actions if option.startswith("--")]
            hint = did_you_mean(name, known) if name.startswith("-") else ""
            self.error(f"unknown argument {name}{hint}")
        return values


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where no known name is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config`, `--json`, `-v` and `-q`: what every command has."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE.yaml",
        help="read options from a file: long option names as keys; the command line wins",
    )
    group.add_argument(
        "--json",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="print one JSON object on stdout instead of text",
    )
    group.add_argument(
        "-v",
        "--verbose",
        dest="verbosity",
        action="store_const",
        const=VERBOSE,
        default=NORMAL,
        help="more messages on stderr",
    )
    group.add_argument(
        "-q",
        "--quiet",
        dest="verbosity",
        action="store_const",
        const=QUIET,
        help="no progress, warnings only",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--dry-run` and `--seed`: for commands that compute something."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--dry-run",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="check the options, print the resolved configuration, and stop",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="for every random choice (default 0)"
    )


def check_bundle(path: Path) -> None:
    """Raise BundleError where there is no bundle; asked before anything large is imported."""
    from regcache_engines.bundle import MANIFEST, Bundle

    if not (path / MANIFEST).is_file():
        Bundle.open(path)  # says what is there instead


def say_what_random_is(pretrained: str | None) -> None:
    """What an export of random weights can show, before minutes are spent on it."""
    if (pretrained or "").startswith("random"):
        log.warning(
            "random weights show structure and speed only: without a head nothing is classified, "
            "fidelity stands in for accuracy, and there are no sinks that RegCache could remove"
        )


def add_device_argument(group: argparse._ActionsContainer, what: str = "") -> None:
    """Add `--device`, for commands without `MachineSettings`."""
    text: str = MachineSettings.__dataclass_fields__["device"].metadata["help"]
    group.add_argument(
        "--device", default="auto", metavar="NAME", help=f"{what + ': ' if what else ''}{text}"
    )


def load_libraries(reporter: Reporter, *needed: tuple[str, str]) -> None:
    """Import torch and open_clip, which takes seconds, and say so meanwhile.

    Args:
        reporter: shows it.
        needed: further modules, each with the extra that brings it.

    Raises:
        ConfigError: one is not installed.
    """
    for module, extra in (("torch", "search"), ("open_clip", "search"), *needed):
        require_installed(module, extra)
    with reporter.stage("loading torch and open_clip"):
        import_open_clip()
        for module, extra in needed:
            require(module, extra)


def add_workers_arguments(group: argparse._ActionsContainer, decoders: str) -> None:
    """Add `--decoders` and `--workers`, for commands without `WorkerSettings`.

    Args:
        decoders: what decodes: threads or processes.
    """
    group.add_argument(
        "--decoders",
        type=int,
        default=0,
        metavar="N",
        help=f"{decoders} that decode (default: cores)",
    )
    found = WorkerSettings.__dataclass_fields__["workers"].metadata
    group.add_argument("--workers", metavar=found["metavar"], help=found["help"])


def require_workers(workers: str | None) -> None:
    """Check the word of `--workers`.

    Raises:
        ConfigError: it is no number and no cluster, or Ray is not installed.
    """
    if WorkerSettings(workers).workers is not None:
        require_installed("ray", "scale")


def setup_logging(verbosity: int) -> None:
    """Send log messages to stderr: ours from `verbosity` on, other libraries' warnings.

    Args:
        verbosity: QUIET, NORMAL or VERBOSE.
    """
    root = logging.getLogger()
    while _handlers:
        root.removeHandler(_handlers.pop())
    console = stderr_console()
    handler: logging.Handler
    if console is not None:
        from rich.logging import RichHandler

        handler = RichHandler(console=console, show_time=False, show_path=False, markup=False)
    else:
        handler = logging.StreamHandler(sys.stderr)
    # rich shows the level in a column of its own
    handler.setFormatter(_LineFormatter(labelled=console is None))
    root.addHandler(handler)
    _handlers.append(handler)
    for name in _OUR_LOGGERS:
        logging.getLogger(name).setLevel(verbosity)
    # Deprecation notices of libraries are for us, not for the user.
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(
        logging.WARNING if verbosity == VERBOSE else logging.ERROR
    )


class _LineFormatter(logging.Formatter):
    """A message on one line, its control characters named: files and bundles are named in them.

    Args:
        labelled: `warning: text`; information has no label.
    """

    def __init__(self, labelled: bool) -> None:
        super().__init__()
        self._labelled = labelled

    def format(self, record: logging.LogRecord) -> str:
        text = " ".join(record.getMessage().split("\n"))
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        text = plain(text)
        labelled = self._labelled and record.levelno != logging.INFO
        return f"{record.levelname.lower()}: {text}" if labelled else text
