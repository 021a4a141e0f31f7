"""Starting a thread, which a host at its limits refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.errors import HostError

if TYPE_CHECKING:
    from threading import Thread


def start_thread(thread: Thread) -> None:
    """Start ``thread``. Raises HostError if the host has none to give."""
    try:
        thread.start()
    except RuntimeError as error:
        raise HostError(
            f"the host did not start a thread ({error}); raise this user's limits on processes and "
            "memory (ulimit -u, ulimit -v), or end something"
        ) from error
