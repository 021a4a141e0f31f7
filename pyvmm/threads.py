"""Starting a thread: signals stay with the main thread, and a host at its limits is told of."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from pyvmm.errors import HostError

if TYPE_CHECKING:
    from threading import Thread

# What programs have handlers for. Not all signals: to make that set takes 0.2 ms of a start.
_THE_PROCESSES = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGCONT, signal.SIGALRM,
    signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD, signal.SIGWINCH,
)  # fmt: skip


def start_thread(thread: Thread) -> None:
    """Start ``thread``, with the signals blocked in it that are for the whole process.

    Python runs signal handlers in the main thread, when that comes by. A signal that the kernel
    gives to another thread does not wake the main thread up, which may wait for a long time. The
    kernel does so, for instance, with a SIGCONT that ends a stop.

    Raises HostError if the host has no thread to give.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _THE_PROCESSES)
    try:
        thread.start()
    except RuntimeError as error:
        raise HostError(
            f"the host did not start a thread ({error}); raise this user's limits on processes and "
            "memory (ulimit -u, ulimit -v), or end something"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
