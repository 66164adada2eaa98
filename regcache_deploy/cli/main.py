"""`regcache <command>`: find the command, run it, and turn errors into one line and an exit code.

A command is a module of this package with `HELP`, `EXAMPLES`, `add_arguments(parser)` and
`run(args) -> int`.
It imports torch, onnx and the like inside `run`: `regcache --help` must answer at once.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, ModuleType

from .. import __version__
from ..errors import ConfigError, RegCacheError
from ..work.format import plain
from ..work.invocation import remember
from ..work.threads import sleep_while_idle
from .common import Parser, did_you_mean, setup_logging
from .config_file import parse_with_config

COMMANDS = (
    "export",
    "search",
    "calibrate",
    "verify",
    "check",
    "build",
    "eval",
    "embed",
    "bench",
    "head",
    "pack",
    "inspect",
    "models",
    "report",
    "doctor",
    "completion",
)
"""In the order of `regcache --help`; each is a module beside this one."""

EXIT_CODES = (
    "exit codes: 0 done, 2 usage or configuration, 3 weights or model, 4 data, "
    "5 ONNX or bundle, 6 verification, 7 engine"
)

RESUMES = ("export", "search", "embed")
"""Commands that keep what is finished."""

_NO_MEMORY = "out of memory; lower --batch-size or --limit"
_NO_MEMORY_WORDS = (
    "can't allocate memory",
    "annot allocate memory",
    "can't start new thread",
    "failed to map segment",
    "bad_alloc",
)
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_TERMINATED = 143  # 128 + SIGTERM
_PIPE_CLOSED = 141  # 128 + SIGPIPE
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM}
_WRONG_PLACE = {errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
_WRONG_PLACE |= {errno.ELOOP, errno.ENXIO}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `regcache`; returns the exit code."""
    return guard(lambda: _dispatch(sys.argv[1:] if argv is None else argv))


def export_main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `regcache-export`."""
    return _script("export", argv)


def build_main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `regcache-build`."""
    return _script("build", argv)


def bench_main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `regcache-bench`."""
    return _script("bench", argv)


def _script(command: str, argv: Sequence[str] | None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    return guard(lambda: _run_command(command, f"regcache-{command}", arguments))


def guard(action: Callable[[], int]) -> int:
    """Run `action`; a mistake of the user ends in one line on stderr, a bug in a traceback."""
    _open_closed_streams()
    _print_anything()
    try:
        try:
            code = action()
        except SystemExit as stop:  # argparse after --help and --version
            code = stop.code if isinstance(stop.code, int) else 0
        sys.stdout.flush()
        return code
    except RegCacheError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED)
    except MemoryError:
        return _fail(_NO_MEMORY, RegCacheError.exit_code)
    except (RuntimeError, ImportError) as error:  # torch, threads and the loader say it in words
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which may not be there
            from ..work.devices import out_of_memory

            return _fail(out_of_memory(error), RegCacheError.exit_code)
        if not any(words in str(error) for words in _NO_MEMORY_WORDS):
            raise
        return _fail(_NO_MEMORY, RegCacheError.exit_code)
    except BrokenPipeError:
        _drop_stdout()
        return _PIPE_CLOSED
    except OSError as error:
        if error.errno == errno.ENOMEM:
            return _fail(_NO_MEMORY, RegCacheError.exit_code)
        if error.errno in _WRONG_PLACE and error.filename:
            reason = f"cannot use {error.filename}: {error.strerror}; check the path"
            return _fail(reason, ConfigError.exit_code)
        if error.errno not in _FULL | _FORBIDDEN:
            raise
        if not error.filename:
            _drop_stdout()
        where = error.filename or "the output"
        hint = "free space or choose another folder with --output"
        if error.errno in _FORBIDDEN:
            hint = "check its owner and mode, or choose another path"
        return _fail(f"cannot use {where}: {error.strerror}; {hint}", ConfigError.exit_code)


def _open_closed_streams() -> None:
    """What daemons and `>&-` close leads nowhere.

    Its number would go to the next file that is opened, and whatever a library prints, into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        mode = os.O_WRONLY if number else os.O_RDONLY
        try:
            os.fstat(number)
        except OSError:
            handle = os.open(os.devnull, mode)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
        setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115


def _print_anything() -> None:
    """Let stdout take characters that its encoding lacks, and names that are no UTF-8."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        codecs.register_error("regcache", _escaped)
        sys.stdout.reconfigure(errors="regcache")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """A space of another kind as a space, anything else as its escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    words = (" " if c.isspace() else c.encode("ascii", "backslashreplace").decode() for c in found)
    return "".join(words), error.end


def _drop_stdout() -> None:
    """Give what stdout still holds somewhere to go: Python flushes it once more at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    print(f"regcache: error: {plain(' '.join(message.splitlines()))}", file=sys.stderr)
    return code


def _dispatch(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        return _run_command(arguments[0], f"regcache {arguments[0]}", arguments[1:])
    lines = [f"  {name:<12}{_module(name).HELP}" for name in COMMANDS]
    parser = Parser(
        prog="regcache",
        usage="regcache <command> [options]",
        description="W8A8 for CLIP-like vision encoders: search, export and deployment.",
        epilog="commands:\n" + "\n".join(lines) + "\n\n`regcache <command> --help` says more\n\n"
        f"{EXIT_CODES}",
    )
    parser.add_argument("--version", action="version", version=f"regcache-deploy {__version__}")
    if not arguments:
        parser.print_help(sys.stderr)
        return ConfigError.exit_code
    if arguments[0].startswith("-"):
        parser.parse_args(arguments)
        parser.error("the command comes first")
    raise ConfigError(_no_command(arguments[0]))


def _run_command(name: str, prog: str, arguments: Sequence[str]) -> int:
    if name not in COMMANDS:
        raise ConfigError(_no_command(name))
    sleep_while_idle()
    module = _module(name)
    parser = parser_of(name, prog)
    args = parse_with_config(parser, arguments)
    remember([*prog.split(), *arguments])
    setup_logging(args.verbosity)
    hint = "; run the same command again to continue" if name in RESUMES else ""
    try:
        with _terminable():
            code: int = module.run(args)
    except _Terminated:
        return _fail(f"terminated{hint}", _TERMINATED)
    except KeyboardInterrupt:
        return _fail(f"interrupted{hint}", _INTERRUPTED)
    return code


def parser_of(name: str, prog: str) -> Parser:
    """The parser of a command, with its examples behind its options."""
    module = _module(name)
    epilog = f"examples:\n{module.EXAMPLES}\n\n{EXIT_CODES}"
    parser = Parser(prog=prog, description=module.__doc__, epilog=epilog)
    module.add_arguments(parser)
    return parser


class _Terminated(KeyboardInterrupt):
    """SIGTERM: what Ctrl-C cleans up is cleaned up."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises, as SIGINT does; signals of other threads than the first are nobody's."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with _raised_again():
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _raised_again() -> Iterator[None]:
    """A signal that comes while a destructor or a weak reference's callback runs is sent again.

    Python prints what is raised there, and goes on as if nothing had happened.
    """
    timers: list[threading.Timer] = []
    known = sys.unraisablehook

    def again(lost: sys.UnraisableHookArgs) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            known(lost)
            return
        terminated = issubclass(lost.exc_type, _Terminated)
        number = signal.SIGTERM if terminated else signal.SIGINT
        # by then the callback is over
        timers.append(threading.Timer(0.01, os.kill, (os.getpid(), number)))
        timers[-1].daemon = True
        timers[-1].start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = known
        for timer in timers:
            timer.cancel()


def _module(name: str) -> ModuleType:
    return importlib.import_module(f".{name}", __package__)


def _no_command(name: str) -> str:
    hint = did_you_mean(name, COMMANDS)
    return f"this version has no command '{name}'{hint}; commands: {', '.join(COMMANDS)}"


if __name__ == "__main__":
    sys.exit(main())
