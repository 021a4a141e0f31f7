"""A guest to talk to over its serial console, as a test's script does.

with GuestSession(MachineConfig(kernel=path)) as guest:
    guest.expect("> ")
    guest.send("poweroff\\n")
    assert guest.result().outcome is Outcome.POWERED_OFF
"""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType

from pyvmm.config import MachineConfig
from pyvmm.machine import Machine
from pyvmm.outcome import RunResult
from pyvmm.terminal import ConsoleReader

TIMEOUT_S = 30.0


class GuestSession:
    """A machine that runs in a thread of its own; what it prints has no carriage returns here."""

    def __init__(self, config: MachineConfig) -> None:
        self._machine = Machine(config, self._take)
        self._news = threading.Condition()
        self._output = bytearray()
        self._seen = 0
        self._result: RunResult | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> GuestSession:
        self._machine.__enter__()
        read_fd, self._input_fd = os.pipe()
        self._input_read_fd = read_fd
        self._reader = ConsoleReader(
            read_fd, self._machine.serial, on_leave=_nothing, notice=lambda text: None
        )
        self._reader.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._machine.stop()
        self._thread.join()
        self._reader.close()
        os.close(self._input_fd)
        os.close(self._input_read_fd)
        self._machine.close()

    def send(self, text: str) -> None:
        """Type ``text``."""
        os.write(self._input_fd, text.encode())

    def expect(self, text: str) -> str:
        """Wait until the guest prints ``text``; return what it has printed since the last time."""
        deadline = time.monotonic() + TIMEOUT_S
        wanted = text.encode()
        with self._news:
            while (at := self._output.find(wanted, self._seen)) < 0:
                if self._ended or not self._news.wait(deadline - time.monotonic()):
                    how = f"ended ({self._result or self._failure})" if self._ended else "is silent"
                    raise AssertionError(
                        f"the guest {how} without {text!r}; it printed {bytes(self._output)!r}"
                    )
            start, self._seen = self._seen, at + len(wanted)
            return self._output[start : self._seen].decode()

    def result(self) -> RunResult:
        """Wait for the end of the run."""
        self._thread.join(TIMEOUT_S)
        if self._failure is not None:
            raise self._failure
        if self._result is None:
            raise AssertionError(f"the guest still runs; it printed {bytes(self._output)!r}")
        return self._result

    @property
    def _ended(self) -> bool:
        return self._result is not None or self._failure is not None

    def _run(self) -> None:
        result, failure = None, None
        try:
            result = self._machine.run()
        except BaseException as error:
            failure = error
        with self._news:
            self._result, self._failure = result, failure
            self._news.notify_all()

    def _take(self, data: bytes) -> None:
        with self._news:
            self._output += data.replace(b"\r", b"")
            self._news.notify_all()


def _nothing() -> None:
    """There is no terminal to leave."""
