"""A guest to talk to over its serial console: Machine.console, in text, with a limit to each wait.

with GuestSession(MachineConfig(kernel=path)) as guest:
    guest.expect("> ")
    guest.send("poweroff\\n")
    assert guest.result().outcome is Outcome.POWERED_OFF
"""

from __future__ import annotations

import re
from types import TracebackType

from pyvmm.config import MachineConfig
from pyvmm.machine import Machine
from pyvmm.outcome import RunResult

TIMEOUT_S = 30.0


class GuestSession:
    """A machine that runs; what it prints has no carriage returns here."""

    def __init__(self, config: MachineConfig) -> None:
        self._machine = Machine(config)

    def __enter__(self) -> GuestSession:
        self._machine.__enter__()
        self._machine.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._machine.close()

    def send(self, text: str) -> None:
        """Type ``text``."""
        self._machine.console.write(text.encode())

    def expect(self, text: str) -> str:
        """Wait until the guest prints ``text``; return what it has printed since the last time."""
        pattern = re.escape(text.encode()).replace(b"\\\n", rb"\r?\n")
        shown = self._machine.console.expect(pattern, TIMEOUT_S)
        return shown.replace(b"\r", b"").decode()

    def result(self) -> RunResult:
        """Wait for the end of the run."""
        result = self._machine.wait(TIMEOUT_S)
        assert result is not None, f"the guest still runs; it said {self._machine.console.output!r}"
        return result
