"""Machine: a virtual machine as a program uses it.

    with Machine(MachineConfig(kernel="bzImage", cmdline="console=ttyS0")) as machine:
        machine.start()
        machine.console.expect(b"login: ", timeout_s=60)
        machine.console.write(b"root\\n")
        ...
        machine.stop()
        result = machine.wait()

The hardware is a Board (board.py), built on entering the context and again at each reset. Around
it are these threads:

    the caller's     start, pause, resume, stop, wait
    the supervisor   decides: gets what they want, and how vCPUs have ended, as messages in one
                     queue, and looks now and then whether the guest still moves
    one for a vCPU   runs its VcpuLoop and touches nothing else

All that happens to a machine happens in the supervisor, one thing after the other; so there is no
lock here, and no order of events that it does not know of. The queue is a SimpleQueue, whose
``put`` may interrupt itself: ``stop`` can be called by a signal handler, at any moment.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from kvm_bindings import KvmError, install_kick_signal
from pyvmm.board import Board
from pyvmm.console import Console, PanicWatch, SerialInput
from pyvmm.errors import HostError, MachineStateError
from pyvmm.outcome import Outcome, RunResult
from pyvmm.threads import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from kvm_bindings import Vcpu
    from pyvmm.boot import Protocol
    from pyvmm.config import MachineConfig
    from pyvmm.loader.load import LoadedKernel, Placement
    from pyvmm.memory import GuestMemory
    from pyvmm.vcpu_loop import VcpuLoop

# How often the supervisor looks whether bytes wait in the coalesced ring of a guest that does not
# exit: the longest that the last byte before a HLT can take to be seen.
_TICK_S = 0.01
# How long a vCPU that is resumed is given to wake up, each time that it is looked at.
_WAKE_UP_S = 0.0005
# After so many ticks without an exit all vCPUs are kicked: have they halted for good?
_INSPECTION_TICKS = 25
# How long a kernel that has panicked may go on, to print what it knows.
_PANIC_GRACE_S = 5.0

STOPPED = RunResult(Outcome.STOPPED, "stopped")


class _VcpuEnded(NamedTuple):
    """A vCPU's thread is over: with this result, or this defect of ours."""

    loop: VcpuLoop
    ending: RunResult | BaseException


class _Stop(NamedTuple):
    """End the run like this."""

    result: RunResult


class _Pause(NamedTuple):
    """Have all vCPUs stand still (or run again), then set ``done``."""

    wanted: bool
    done: threading.Event


_Message = _VcpuEnded | _Stop | _Pause


class Machine:
    """A machine as ``config`` describes it; a context manager that builds it on entry.

    ``console_output`` gets what the guest sends to ttyS0, from a vCPU's thread; if there is none,
    ``console`` keeps it. ``other_outputs`` do the same for ttyS1 to ttyS3; None is no port.
    ``serial_inputs`` take what the guest shall read from its ports, ``serial`` is the first.

    Raises ConfigError if ``config`` does not make a machine. What entering raises: see Board.
    """

    def __init__(
        self,
        config: MachineConfig,
        console_output: Callable[[bytes], object] | None = None,
        other_outputs: Sequence[Callable[[bytes], object] | None] = (),
    ) -> None:
        config.check()
        self.config = config
        self.serial_inputs = [SerialInput() for _ in range(1 + len(other_outputs))]
        self.serial = self.serial_inputs[0]
        self._console: Console | None = None
        if console_output is None:
            self._console = Console(self.serial)
            console_output = self._console.take
        self._panic_watch = PanicWatch(console_output)
        self._outputs = [self._panic_watch.write, *other_outputs]
        self._board: Board | None = None
        self._messages: SimpleQueue[_Message] = SimpleQueue()
        self._supervisor: threading.Thread | None = None
        self._done = threading.Event()
        self._paused = False
        self._ending: RunResult | BaseException = STOPPED
        self._exits_before_reset = 0
        self._completions_before_reset: Counter[str] = Counter()
        self._kick_signal = 0
        self.boots = 0
        """How often the machine has been powered on or reset."""

    def __enter__(self) -> Machine:
        self._power_on()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the run if there is one, and give everything back to the host."""
        if self._supervisor is not None and not self._done.is_set():
            self.stop()
            self._supervisor.join()
        if self._board is not None:
            self._board.close()
            self._board = None
        if self._console is not None:
            self._console.end()

    # What a program does with a machine.

    def start(self) -> None:
        """Let the guest run. Once in a machine's life."""
        if self._supervisor is not None:
            raise MachineStateError("the machine was started before; make a new one")
        self._kick_signal = install_kick_signal()
        # Known before it runs: a signal may raise here as soon as it does.
        self._supervisor = threading.Thread(target=self._supervise, name="machine", daemon=True)
        try:
            start_thread(self._supervisor)
        except HostError:
            self._supervisor = None
            raise

    def wait(self, timeout_s: float | None = None) -> RunResult | None:
        """Wait for the end of the run: how it ended, or None if it has not after ``timeout_s``.

        An error that is not the guest's is raised here.
        """
        if self._supervisor is None:
            raise MachineStateError("the machine was never started; call start() first")
        if not self._done.wait(timeout_s):
            return None
        if isinstance(self._ending, BaseException):
            raise self._ending
        return self._ending

    def stop(self, result: RunResult = STOPPED) -> None:
        """Have the run end with ``result``; does not wait for it. The first call counts.

        From any thread, or a signal handler; before ``start``, too.
        """
        self._messages.put(_Stop(result))

    def run(self, timeout_s: float | None = None) -> RunResult:
        """Start, wait for the end, at the latest for ``timeout_s``, and say how it ended."""
        self.start()
        try:
            result = self.wait(timeout_s)
        except BaseException:
            self.stop()
            raise
        if result is None:
            how = f"timeout: still running after {timeout_s:g} s"
            self.stop(RunResult(Outcome.TIMEOUT, how))
            result = self.wait()
        assert result is not None
        return result

    def press_power_button(self) -> None:
        """Ask the guest to shut down. Whether it does is for it to decide (acpid, systemd)."""
        self.board.power.press_power_button()

    def pause(self) -> None:
        """Have all vCPUs stand still; returns when they do. Nothing if they do already.

        The guest's clocks go on, as they would on a machine that nobody looks at.
        """
        self._pause(True)

    def resume(self) -> None:
        """Let all vCPUs run on."""
        self._pause(False)

    @property
    def paused(self) -> bool:
        """Whether all vCPUs stand still."""
        return self._paused

    @property
    def console(self) -> Console:
        """The guest's first serial port, to read from and to write to."""
        if self._console is None:
            raise MachineStateError("the console's output goes elsewhere, as console_output said")
        return self._console

    @property
    def vcpus(self) -> list[Vcpu]:
        """The vCPUs, for a look at their registers: only while nothing runs."""
        if self._supervisor is not None and not (self._paused or self._done.is_set()):
            raise MachineStateError("the machine is running; pause() it first")
        return [loop.vcpu for loop in self.board.loops]

    @property
    def memory(self) -> GuestMemory:
        """The guest's memory. While the guest runs it may change under your hands."""
        return self.board.memory

    @property
    def board(self) -> Board:
        """The hardware, as it is since the last reset."""
        if self._board is None:
            raise MachineStateError("the machine is not built; use it in a with statement")
        return self._board

    @property
    def kernel(self) -> LoadedKernel:
        """What was loaded, and where it can be entered."""
        return self.board.kernel

    @property
    def protocol(self) -> Protocol:
        """How the kernel is entered."""
        return self.board.protocol

    @property
    def entry_gpa(self) -> int:
        """Where the kernel is entered."""
        return self.board.entry_gpa

    @property
    def exits(self) -> int:
        """How often the guest has needed us."""
        return self._exits_before_reset + sum(loop.exits for loop in self.board.loops)

    @property
    def completions(self) -> Counter[str]:
        """How often which instruction was executed by pyvmm because KVM could not.

        Empty where KVM has hardware under it.
        """
        total = Counter(self._completions_before_reset)
        for loop in self.board.loops:
            total.update(loop.completions)
        return total

    @property
    def debug_registers_are_taken(self) -> bool:
        """Whether pyvmm has set a hardware breakpoint of its own, to have SYSCALL enter the kernel.

        The guest's own debug registers have no effect then, nor may a debugger take them.
        """
        return any(loop.debug_registers_are_taken for loop in self.board.loops)

    def placements(self) -> Iterator[Placement]:
        """What was put into guest memory, by address."""
        return self.board.placements()

    def _pause(self, wanted: bool) -> None:
        if self._supervisor is None:
            raise MachineStateError("the machine was never started; call start() first")
        done = threading.Event()
        self._messages.put(_Pause(wanted, done))
        while not done.wait(_TICK_S):
            if self._done.is_set():
                return  # it ended first: nothing runs any more

    # The supervisor's thread.

    def _supervise(self) -> None:
        try:
            while True:
                ending = self._run_board()
                if not self._is_to_be_reset(ending):
                    break
                self._reset()
        except BaseException as error:  # whatever it is, it belongs to the caller of wait()
            ending = error
        self._ending = ending
        if self._console is not None:
            self._console.end()
        self._done.set()

    def _is_to_be_reset(self, ending: RunResult | BaseException) -> bool:
        return (
            isinstance(ending, RunResult) and ending.outcome is Outcome.RESET and self.config.reboot
        )

    def _reset(self) -> None:
        self._exits_before_reset = self.exits
        self._completions_before_reset = self.completions
        self.board.close()
        self._power_on()

    def _power_on(self) -> None:
        self._board = Board(self.config, self._outputs, self._panic_watch.report).__enter__()
        for serial_input, serial in zip(self.serial_inputs, self._board.serials, strict=True):
            serial_input.connect(serial)
        self.boots += 1

    def _run_board(self) -> RunResult | BaseException:
        """Run the vCPUs until one of them ends, or the run is to end; how it ended."""
        loops = self.board.loops
        threads: list[threading.Thread] = []
        try:
            for loop in loops:
                run = partial(self._run_vcpu, loop)
                threads.append(_start_thread(f"vcpu{loop.vcpu.id}", run))
            ending = self._watch(loops)
        finally:
            _end_loops(loops, threads)
            self._paused = False
        return self._panic_watch.judge(ending)

    def _run_vcpu(self, loop: VcpuLoop) -> None:
        ending: RunResult | BaseException
        # We may have been started with signals blocked. This one must come through.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {self._kick_signal})
        try:
            ending = loop.run()
        except BaseException as error:
            ending = error
        self._messages.put(_VcpuEnded(loop, ending))

    def _watch(self, loops: list[VcpuLoop]) -> RunResult | BaseException:
        """Answer messages until one of them, or what is seen of the guest, is the end."""
        exits_before, idle_ticks = -1, 0
        while True:
            try:
                message = self._messages.get(timeout=_TICK_S)
            except Empty:
                if self._paused:
                    continue
                exits = sum(loop.exits for loop in loops)
                idle_ticks = idle_ticks + 1 if exits == exits_before else 0
                exits_before = exits
                if idle_ticks and loops[0].vcpu.coalesced_pending:
                    loops[0].kick()
                elif idle_ticks >= _INSPECTION_TICKS:
                    idle_ticks = 0
                    if halted := _all_halted(loops):
                        return halted
                if panic := self._panic_watch.overdue(_PANIC_GRACE_S):
                    return panic
                continue
            match message:
                case _VcpuEnded(loop, ending):
                    if loop in loops:  # and not of a board before the last reset
                        return ending
                case _Stop(result):
                    return result
                case _Pause(wanted, done):
                    _park(loops) if wanted else _unpark(loops)
                    self._paused = wanted
                    done.set()


def _all_halted(loops: list[VcpuLoop]) -> RunResult | None:
    """What the last look at all vCPUs has found, if none can go on. Starts the next look."""
    # The looks of one round count together: a vCPU that slept before may have been woken since.
    found = [loop.halted for loop in loops]
    for loop in loops:
        loop.halted = None
        loop.kick()
    if all(found):
        return found[0]
    return None


def _park(loops: list[VcpuLoop]) -> None:
    """Have every vCPU stand still, and tell the guest's clocks that it was not their fault."""
    for loop in loops:
        loop.pause()
    for loop in loops:
        while not (loop.parked.is_set() or loop.has_ended):
            loop.kick()
            loop.parked.wait(_TICK_S)
        try:
            loop.vcpu.kvmclock_ctrl()
        except KvmError:
            pass  # this guest does not use the clock that this is for


def _unpark(loops: list[VcpuLoop]) -> None:
    for loop in loops:
        loop.resume()
    for loop in loops:
        while loop.parked.is_set():  # or the next pause would take it for its own
            time.sleep(_WAKE_UP_S)


def _end_loops(loops: list[VcpuLoop], threads: list[threading.Thread]) -> None:
    """Get every vCPU's thread out of the guest, and see it end.

    One kick is enough if the vCPU is in KVM_RUN; it may also be in a device, waiting for the reader
    of the console, and comes back from there by itself.
    """
    for loop in loops:
        loop.end = loop.end or STOPPED
        loop.resume()
    for loop, thread in zip(loops, threads, strict=False):
        while thread.is_alive():
            loop.kick()
            thread.join(_TICK_S)


def _start_thread(name: str, target: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=target, name=name, daemon=True)
    start_thread(thread)
    return thread
