"""The console scripts: what they leave behind, and that they end with their exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from regcache_deploy.search.find import spending
from regcache_deploy.work.count import Work


def run(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    words = ["-c", code] if code else ["-m", "regcache_deploy"]
    return subprocess.run(
        [sys.executable, *words, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "code"), [(("--version",), 0), (("nonsense",), 2), (("verify", "/nowhere"), 5)]
)
def test_python_m_is_regcache(arguments: tuple[str, ...], code: int) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert (done.stdout.startswith("regcache-deploy ")) is (code == 0)
    assert (done.stderr.startswith("regcache: error: ")) is (code != 0)


@pytest.mark.parametrize(
    ("closed", "arguments", "code"),
    [("01", ("--version",), 0), ("2", ("nonsense",), 2), ("012", ("doctor",), 0)],
)
def test_closed_streams_lead_nowhere(closed: str, arguments: tuple[str, ...], code: int) -> None:
    """As daemons have them; a number that is free would go to the next file that is written."""
    program = (
        "import os, sys\n"
        "from regcache_deploy.cli.main import main\n"
        "code = main(sys.argv[2:])\n"
        "nowhere = os.stat(os.devnull)\n"
        "for number in map(int, sys.argv[1]):\n"
        "    assert os.path.samestat(os.fstat(number), nowhere)\n"
        "sys.exit(code)\n"
    )
    closing = " ".join(f"{number}>&-" for number in closed)
    command = ["sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, "-c", program]
    done = subprocess.run(
        [*command, closed, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_registered_for_the_end_is_run_and_all_is_flushed() -> None:
    """The interpreter's own end is left out, but not what others rely on."""
    code = (
        "import atexit, sys\n"
        "from regcache_deploy.cli.entry import leave\n"
        "atexit.register(lambda: print('registered'))\n"
        "def command():\n"
        "    print('x' * 100000)\n"
        "    return 7\n"
        "leave(command)\n"
    )
    done = run(code=code)
    assert done.returncode == 7
    assert done.stdout.splitlines() == ["x" * 100000, "registered"]


def test_a_race_tells_what_it_spends_and_never_more_than_its_budget() -> None:
    work, told = Work(100), list[int]()
    tell = spending(lambda: work.block_forwards, told.append, 50)
    for spent in (20, 0, 40):
        work.add(spent)
        tell(1)
    assert told == [20, 0, 30]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_a_destructor_is_not_lost(number: signal.Signals, code: int) -> None:
    """Python prints what a destructor raises, and goes on."""
    program = (
        "import os, signal, sys, time\n"
        "from regcache_deploy.cli import doctor, main\n"
        "class Last:\n"
        f"    def __del__(self): os.kill(os.getpid(), {int(number)}); time.sleep(0.05)\n"
        "def run(args):\n"
        "    Last()\n"
        "    time.sleep(20)\n"
        "doctor.run = run\n"
        "sys.exit(main.main(['doctor', '-q']))"
    )
    done = run(code=program)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
