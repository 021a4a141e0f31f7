"""The host's end of the agent that runs commands in the guest (agent.sh has the protocol)."""

from __future__ import annotations

import math
import shlex
import time
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.testing.outcomes import CommandFailed, VmmError
from pyvmm.units import KiB

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pyvmm.console import Console

PART_BYTES = 32 * KiB
VERSION = 1

# How much longer than a command's own limit its report may take.
_GRACE_S = 30.0
# A command that may take for ever: what the guest's `sleep` is told.
_NO_LIMIT_S = 10**8


class Completed(NamedTuple):
    """A command that ended. ``stdout`` and ``stderr`` are its bytes, whatever they are."""

    command: str
    returncode: int
    """The shell's: 128 + N if signal N ended it."""
    stdout: bytes
    stderr: bytes
    timed_out: bool = False
    """Whether it was killed, with all that it had started, because its time was over."""

    @property
    def output(self) -> str:
        """``stdout`` as text, without the newline at its end."""
        return self.stdout.decode("utf-8", "replace").removesuffix("\n")

    def check(self) -> Completed:
        """Raise CommandFailed unless it ended in time, and with 0."""
        if self.timed_out:
            raise CommandFailed(f"{self.command!r} did not end in time, and was killed", self)
        if self.returncode:
            said = self.stderr.decode("utf-8", "replace").strip().splitlines()
            why = f": {said[-1]}" if said else ""
            raise CommandFailed(f"{self.command!r} ended with {self.returncode}{why}", self)
        return self


class Agent:
    """The agent of one guest.

    ``wait(port, waiting_for, deadline)`` is how to wait for more from a port: it returns bytes, or
    raises what has become of the guest instead.
    """

    def __init__(self, port: Console, wait: Callable[[Console, str, float | None], bytes]) -> None:
        self._port = port
        self._wait = wait
        self._received = bytearray()
        self._last_id = 0
        self._is_ready = False

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait for the agent's first word."""
        if self._is_ready:
            return
        deadline = time.monotonic() + timeout_s
        # A kernel may say something there before: its messages, if it is a console as well.
        while (line := self._line("the guest's agent", deadline)).split()[:1] != [b"ready"]:
            pass
        version = int(line.split()[1])
        if version != VERSION:
            raise VmmError(
                f"the guest's agent speaks version {version} of its protocol; expected {VERSION}; "
                "make the initramfs again, with this pyvmm"
            )
        self._is_ready = True

    def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        timeout_s: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Completed:
        """Run ``command`` in the guest's shell and wait for its end."""
        self.wait_until_ready(_GRACE_S)
        settings = [f"export {name}={shlex.quote(value)}" for name, value in (env or {}).items()]
        if cwd is not None:
            settings.append(f"cd {shlex.quote(cwd)} || exit 127")
        script = "\n".join([*settings, command, ""]).encode("utf-8", "surrogateescape")
        self._last_id += 1
        seconds = _NO_LIMIT_S if timeout_s is None else math.ceil(timeout_s)  # as `sleep` has it
        deadline = None if timeout_s is None else time.monotonic() + timeout_s + _GRACE_S
        what = f"the end of {command!r}"
        header = f"run {self._last_id} {seconds} {len(script)} {len(stdin)}\n"
        self._port.write(header.encode())
        self._send(script, what, deadline)
        self._send(stdin, what, deadline)
        words = self._line(what, deadline).split()
        if len(words) != 6 or words[:2] != [b"done", b"%d" % self._last_id]:
            raise VmmError(
                f"the guest's agent answered {b' '.join(words)!r} to command {self._last_id}; "
                "expected `done`; does something else write to its serial port?"
            )
        status, expired, out_bytes, err_bytes = (int(word) for word in words[2:])
        stdout = self._exactly(out_bytes, what, deadline)
        stderr = self._exactly(err_bytes, what, deadline)
        return Completed(command, status, stdout, stderr, bool(expired))

    def _send(self, data: bytes, what: str, deadline: float | None) -> None:
        for start in range(0, len(data), PART_BYTES):
            self._port.write(data[start : start + PART_BYTES])
            line = self._line(what, deadline)
            if line != b"more":
                raise VmmError(f"the guest's agent answered {line!r} to data; expected `more`")

    def _line(self, what: str, deadline: float | None) -> bytes:
        while (end := self._received.find(b"\n")) < 0:
            self._received += self._wait(self._port, what, deadline)
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line.rstrip(b"\r")

    def _exactly(self, size_bytes: int, what: str, deadline: float | None) -> bytes:
        while len(self._received) < size_bytes:
            self._received += self._wait(self._port, what, deadline)
        data = bytes(self._received[:size_bytes])
        del self._received[:size_bytes]
        return data
