"""Starting threads: who gets the signals, and what a host at its limits says."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable

import pytest

from pyvmm.errors import HostError
from pyvmm.threads import start_thread


def test_signals_of_the_process_are_blocked_in_the_thread_and_not_in_its_starter() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    masks: list[Iterable[int]] = []
    thread = threading.Thread(
        target=lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    )
    start_thread(thread)
    thread.join(10)
    (mask,) = masks
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCONT} <= set(mask)
    assert signal.SIGSEGV not in mask
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_host_that_gives_no_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(HostError, match=r"can't start new thread.*ulimit -u"):
        start_thread(threading.Thread())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
