"""Vm: a guest for a test, from its first console line to its end.

    with Vm(VmSpec(kernel="debian:6.1-cloud")) as vm:
        vm.wait_ready()
        assert vm.run("uname -s").check().output == "Linux"
        vm.sendline("poweroff -f")
        assert vm.wait().outcome is Outcome.POWERED_OFF

It is a Machine (machine.py) with pexpect's view of its console, and the agent of its initramfs on
its second serial port. Whatever goes wrong with the guest while a test waits for something comes
as an exception of outcomes.py, with a report for people.
"""

from __future__ import annotations

import re
import shlex
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import pexpect

from pyvmm.config import MachineConfig
from pyvmm.console import Console
from pyvmm.errors import PyvmmError
from pyvmm.fetch import resolve_kernel
from pyvmm.initramfs import READY_MARKER
from pyvmm.machine import Machine
from pyvmm.testing import outcomes
from pyvmm.testing.agent import Agent, Completed
from pyvmm.testing.console import ConsoleSpawn
from pyvmm.testing.problems import Problem, find_problems
from pyvmm.testing.report import describe_machine, describe_vcpus
from pyvmm.testing.text import plain_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from pyvmm.outcome import RunResult

# Warnings are shown with 5; a panic ends the run by a reset.
DEFAULT_CMDLINE = "console=ttyS0 loglevel=5 reboot=k panic=-1"

# How often a silent guest is looked at, and how far apart two looks at a processor may find it
# that does not move: a loop of a few instructions.
_LOOK_S = 0.5
_STANDSTILL_BYTES = 256
_LAST_LINES = 40


class VmSpec(NamedTuple):
    """What a test asks for: enough to boot it again, anywhere, with the same result."""

    kernel: str
    """A file, or a name of `pyvmm fetch --list`."""
    cmdline: str = DEFAULT_CMDLINE
    initrd: str | None = None
    cpus: int = 1
    memory_bytes: int = 256 * 1024 * 1024
    protocol: str = "auto"

    def config(self) -> MachineConfig:
        """The machine. Raises PyvmmError for a kernel that cannot be had, or no machine."""
        from pyvmm.boot import Protocol

        return MachineConfig(
            kernel=resolve_kernel(self.kernel),
            cmdline=self.cmdline,
            initrd=self.initrd,
            memory_bytes=self.memory_bytes,
            cpus=self.cpus,
            protocol=Protocol(self.protocol),
            reboot=False,
        )

    def command(self) -> str:
        """A command line that boots the same."""
        words = ["pyvmm", "run", "--kernel", self.kernel, "--cmdline", self.cmdline]
        words += ["--initrd", self.initrd] if self.initrd else []
        words += ["--mem", f"{self.memory_bytes >> 20}M", "--cpus", str(self.cpus)]
        words += ["--protocol", self.protocol, "--no-reboot", "--serial", "stdio"]
        return shlex.join([*words, "--serial", "pty"])


class Vm:
    """A guest. A context manager: entering it starts it, leaving it ends it, always.

    ``timeout_s`` is how long ``expect`` and ``wait`` wait if they are not told. A guest that says
    nothing for ``hang_after_s``, and whose processors have stood still for as long, hangs.
    """

    def __init__(
        self, spec: VmSpec, *, timeout_s: float = 120.0, hang_after_s: float = 30.0
    ) -> None:
        self.spec = spec
        self._timeout_s = timeout_s
        self._hang_after_s = hang_after_s
        self._stack = ExitStack()
        self._moved_at = 0.0
        self._seen: tuple[int, ...] = ()
        self._looked_at = 0.0
        self._output_bytes = 0
        self._waiting_for = "its output"
        self._result: RunResult | None = None
        self._allowed: list[type[outcomes.KernelProblem] | str] = []

    def __enter__(self) -> Vm:
        try:
            # The agent's port is made after the machine that writes to it.
            self.machine = self._stack.enter_context(
                Machine(self.spec.config(), None, [lambda data: self._agent_port.take(data)])
            )
            self._agent_port = Console(self.machine.serial_inputs[1])
            self.console = ConsoleSpawn(
                self.machine.console, self._timeout_s, self._read_for_expect
            )
            self._agent = Agent(self._agent_port, self._wait_for_bytes)
            self._moved_at = time.monotonic()
            self.machine.start()
        except PyvmmError as error:
            self._stack.close()
            raise outcomes.VmmError(str(error)) from error
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the guest, whatever it does."""
        self._stack.close()

    # The console.

    def expect(self, pattern: str | Sequence[str], timeout_s: float | None = None) -> int:
        """Wait for a regular expression, or one of several; its index. See pexpect's ``expect``.

        ``before``, ``after`` and ``match`` tell what was found.
        """
        patterns = [pattern] if isinstance(pattern, str) else list(pattern)
        waiting_for = " or ".join(repr(one) for one in patterns)
        self._waiting_for = waiting_for
        wait_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            index: int = self.console.expect(patterns, timeout=wait_s)
        except pexpect.EOF:
            raise self._ended(waiting_for) from None
        except pexpect.TIMEOUT:
            raise self._overdue(waiting_for, wait_s) from None
        return index

    def sendline(self, text: str = "") -> None:
        """Type ``text`` and the enter key."""
        self.console.sendline(text)

    def send(self, text: str) -> None:
        """Type ``text``, as it is."""
        self.console.send(text)

    @property
    def before(self) -> str:
        """What came before the last match."""
        return str(self.console.before)

    @property
    def after(self) -> str:
        """The last match."""
        return str(self.console.after)

    @property
    def match(self) -> re.Match[str]:
        """The last match, as ``re`` has it."""
        found: re.Match[str] = self.console.match
        return found

    @property
    def console_text(self) -> str:
        """All that the console has shown, as text."""
        return plain_text(self.machine.console.output)

    # Commands and files.

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until the initramfs's init has begun its work."""
        self.expect(READY_MARKER, timeout_s)

    def run(
        self,
        command: str,
        *,
        stdin: bytes | str = b"",
        timeout_s: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Completed:
        """Run a shell command in the guest, by its agent; not on the console.

        After ``timeout_s``, in whole seconds, it is killed, with all that it started.
        """
        data = stdin.encode() if isinstance(stdin, str) else stdin
        return self._agent.run(command, stdin=data, timeout_s=timeout_s, env=env, cwd=cwd)

    def put(self, data: bytes | str, path: str, *, mode: int = 0o644) -> None:
        """Write ``data`` to the file ``path`` of the guest."""
        quoted = shlex.quote(path)
        command = f"cat >{quoted} && chmod {mode:o} {quoted}"
        self.run(command, stdin=data, timeout_s=self._timeout_s).check()

    def get(self, path: str) -> bytes:
        """The content of the file ``path`` of the guest."""
        return self.run(f"cat {shlex.quote(path)}", timeout_s=self._timeout_s).check().stdout

    # The end.

    def wait(self, timeout_s: float | None = None) -> RunResult:
        """Wait for the guest to end by itself; how it did.

        A panic, a triple fault and the like are results here, and no exceptions.
        """
        wait_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + wait_s
        while (result := self.machine.wait(_LOOK_S)) is None:
            self._look_for_a_hang("the end")
            if time.monotonic() > deadline:
                raise self._overdue("the end", wait_s)
        self._result = result
        return result

    @property
    def problems(self) -> list[Problem]:
        """What the kernel has reported on its console so far, but for what is allowed."""
        return [
            problem
            for problem in find_problems(self.console_text)
            if not any(
                re.search(allowed, problem.line)
                if isinstance(allowed, str)
                else issubclass(problem.kind, allowed)
                for allowed in self._allowed
            )
        ]

    def allow(self, *what: type[outcomes.KernelProblem] | str) -> None:
        """Have ``problems`` and ``check`` pass over these: a kind, or a regular expression.

        The expression is looked for in the first line of the kernel's report.
        """
        self._allowed += what

    def check(self) -> None:
        """Raise the first problem that the kernel has reported, if it is not an allowed one."""
        for problem in self.problems:
            raise problem.kind(problem.line, self.report())

    # What is known of it.

    def pause(self) -> None:
        """Have it stand still, to be looked at."""
        self.machine.pause()

    def report(self) -> str:
        """All that helps to see what went wrong, for people: several paragraphs."""
        lines = self.console_text.splitlines()
        parts = ["the last console lines:", *(f"  {line}" for line in lines[-_LAST_LINES:])]
        parts += ["", describe_vcpus(self.machine), "", describe_machine(self.machine)]
        parts += ["", "to boot it again:", f"  {self.spec.command()}"]
        return "\n".join(parts)

    def _read_for_expect(self, timeout_s: float | None) -> bytes:
        """For pexpect: bytes, or none after ``timeout_s``, or at the end."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            remaining_s = _LOOK_S if deadline is None else min(_LOOK_S, deadline - time.monotonic())
            data = self.machine.console.read(max(remaining_s, 0))
            if data or self.machine.console.ended:
                return data
            self._look_for_a_hang(self._waiting_for)
            if deadline is not None and time.monotonic() >= deadline:
                return b""

    def _wait_for_bytes(self, port: Console, waiting_for: str, deadline: float | None) -> bytes:
        """For the agent. A command may be silent and idle for as long as it likes: no hang."""
        while True:
            data = port.read(_LOOK_S)
            if data:
                return data
            if port.ended or self.machine.console.ended:
                raise self._ended(waiting_for)
            if deadline is not None and time.monotonic() > deadline:
                raise outcomes.GuestTimeout(f"{waiting_for} did not come in time", self.report())

    def _ended(self, waiting_for: str) -> Exception:
        result = self.machine.wait()
        assert result is not None
        self._result = result
        return outcomes.failure_of(result, waiting_for, self.report())

    def _overdue(self, waiting_for: str, wait_s: float) -> outcomes.GuestFailure:
        """The guest runs, and what was waited for has not come: has it told why?"""
        report = self.report()
        for problem in self.problems:
            return problem.kind(f"{problem.line}, while waiting for {waiting_for}", report)
        return outcomes.GuestTimeout(f"no {waiting_for} in {wait_s:g} s", report)

    def _look_for_a_hang(self, waiting_for: str) -> None:
        """Raise GuestHang if the guest has neither said anything nor moved for too long."""
        now = time.monotonic()
        if now < self._looked_at + _LOOK_S:
            return
        self._looked_at = now
        output_bytes = len(self.machine.console.output)
        self.machine.pause()
        try:
            rips = tuple(vcpu.get_regs().rip for vcpu in self.machine.vcpus)
        finally:
            self.machine.resume()
        stands = len(rips) == len(self._seen) and all(
            abs(rip - before) < _STANDSTILL_BYTES
            for rip, before in zip(rips, self._seen, strict=True)
        )
        if not stands or output_bytes != self._output_bytes:
            self._moved_at, self._seen, self._output_bytes = now, rips, output_bytes
        elif now - self._moved_at > self._hang_after_s:
            self.machine.pause()
            raise outcomes.GuestHang(
                f"no output and no movement for {self._hang_after_s:g} s, while waiting for "
                f"{waiting_for}",
                self.report(),
            )
