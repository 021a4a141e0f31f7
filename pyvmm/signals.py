"""Signals that would end this process, taken as a reason to stop and tidy up."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

FATAL_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Signalled(Exception):  # noqa: N818 - the user's wish, no error
    """Raised out of whatever was going on by a signal that is to end us."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = signal.Signals(number).name
        super().__init__(f"ended by {self.name}")


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """While inside, a signal that would end this process raises Signalled, and so unwinds.

    Once: from then on they are ignored, until the process has ended as it was told.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        for again in FATAL_SIGNALS:
            signal.signal(again, signal.SIG_IGN)
        raise Signalled(number)

    # One that we were started to ignore, as by nohup, stays ignored.
    previous = {
        number: signal.signal(number, handle)
        for number in FATAL_SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        # Blocked meanwhile, as in cli/run.py: Python complains of one that has no handler any more.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, previous)
        for number, handler in previous.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
