"""Fixtures that several files share."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # started in the background by a shell: the commands under test would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Torch draws the same in every test, whichever ran before it in the same process."""
    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tensors so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    """A command that ran inside a test has set levels and a handler on that test's stderr."""
    names = ("", "regcache_deploy", "regcache_export", "regcache_engines", "py.warnings")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = [h for h in logger.handlers if h in handlers]
