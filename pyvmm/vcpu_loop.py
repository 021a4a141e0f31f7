"""The run loop of one vCPU: KVM_RUN, then whatever the guest wants of us, and again.

The guest runs inside the KVM_RUN ioctl until it does something that KVM leaves to us: mostly a
port or memory access that belongs to a device. The loop looks at ``kvm_run``, hands the access
to a bus, and runs on; the device's answer is picked up by the next KVM_RUN.

Two things besides exits are taken care of here:

*Coalesced writes.* Writes to some registers (the UART's transmit register) do not exit at all:
KVM puts them into a ring, to be seen at the next exit. They happened before it, so the ring is
drained first.

*Kicks.* Another thread that wants something of this vCPU says what (``end``, ``pause``, or just a
look at whether it has halted), then kicks: it sets ``immediate_exit`` and sends a signal. Whether
the vCPU was in KVM_RUN or about to enter it, KVM_RUN returns at once; ``immediate_exit`` is
cleared *before* the reason is looked for, so that a kick that comes later is not lost.

With more than one vCPU a lock goes around every access to a device, and around the ring, which is
the VM's: devices need not know how many vCPUs there are.

The loop is flat and works on plain ints, since everything here is paid for by every exit.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from threading import Event, get_native_id
from typing import TYPE_CHECKING

from kvm_bindings import ExitReason, KvmError, constants
from pyvmm.arch.x86_64.registers import RFLAGS_IF
from pyvmm.errors import GuestMemoryError
from pyvmm.outcome import Outcome, RunEnded, RunResult

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Lock
    from typing import Any, Literal

    from kvm_bindings import Vcpu
    from kvm_bindings.exits import InternalError, VcpuExit
    from pyvmm.completion.completer import Completer
    from pyvmm.devices.bus import MmioBus, PortBus

_EXIT_IO = ExitReason.IO
_EXIT_MMIO = ExitReason.MMIO
_EXIT_INTR = ExitReason.INTR
_IO_OUT = constants.KVM_EXIT_IO_OUT
_CELL_FORMATS: dict[int, Literal["B", "H", "I"]] = {1: "B", 2: "H", 4: "I"}  # bytes: struct's code
_MP_STATE_HALTED = constants.KVM_MP_STATE_HALTED
_MP_STATE_UNINITIALIZED = constants.KVM_MP_STATE_UNINITIALIZED
_LONGEST_INSTRUCTION_BYTES = 15  # SDM 2A 2.3.11


# A port access: is it an OUT, the device's writer or reader, and where the data lies.
_PortAccess = tuple[bool, "Callable[..., Any]", memoryview]


class VcpuLoop:
    """Runs ``vcpu`` until something ends the run. ``run`` belongs to one thread.

    ``device_lock`` is what the loops of all vCPUs share; a machine with one vCPU needs none.
    ``make_completer`` makes what executes the instructions that KVM cannot, at the first of them;
    without it such an instruction ends the run. ``name_of`` gives an address a name, if there is
    one: ``native_halt+0xa/0x10``.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        ports: PortBus,
        mmio: MmioBus,
        read_memory: Callable[[int, int], bytes],
        device_lock: Lock | None = None,
        make_completer: Callable[[Vcpu], Completer] | None = None,
        name_of: Callable[[int], str | None] = lambda gva: None,
    ) -> None:
        self.vcpu = vcpu
        self.native_thread_id = 0
        """Of the thread in ``run``: for kicks. 0 if there is none yet."""
        self.exits = 0
        """How often KVM_RUN has returned; others may read it to see whether the guest moves."""
        self.end: RunResult | None = None
        """Set by another thread, before it kicks, to end the run with this result."""
        self.halted: RunResult | None = None
        """What the last kick found: the vCPU cannot go on by itself, with this as the reason."""
        self.parked = Event()
        """Set while the vCPU stands still after ``pause``: its state may be looked at."""
        self.has_ended = False
        """Whether ``run`` is over: it will not park any more."""
        self._may_run = Event()
        self._may_run.set()
        self._device_lock = device_lock
        self._slow_path_lock = device_lock or nullcontext()
        self._ports = ports
        self._mmio = mmio
        self._read_memory = read_memory
        self._make_completer = make_completer
        self._name_of = name_of
        self._completer: Completer | None = None

    # For other threads.

    @property
    def completions(self) -> dict[str, int]:
        """How often which instruction was executed here instead of by KVM, by its mnemonic."""
        return dict(self._completer.counts) if self._completer is not None else {}

    @property
    def debug_registers_are_taken(self) -> bool:
        """Whether a breakpoint of ours has taken the guest's debug registers from it."""
        return self._completer is not None and self._completer.debug_registers_are_taken

    def kick(self) -> None:
        """Get the vCPU out of the guest to look at what is wanted of it."""
        if self.native_thread_id:
            self.vcpu.kick(self.native_thread_id)

    def pause(self) -> None:
        """Have the vCPU stand still at its next kick, between two instructions."""
        self._may_run.clear()

    def resume(self) -> None:
        """Let it go on."""
        self._may_run.set()

    # For the thread that runs the vCPU.

    def run(self) -> RunResult:
        """Run the guest until the run ends, and say how it ended."""
        self.native_thread_id = get_native_id()
        try:
            return self._run()
        except RunEnded as ended:
            return ended.result
        except KvmError as error:
            return RunResult(Outcome.KVM_FAILURE, f"KVM could not run the guest: {error}")
        finally:
            self.has_ended = True

    def _run(self) -> RunResult:
        vcpu = self.vcpu
        run_once = vcpu.run
        io_header = vcpu.io_header
        first_and_last = vcpu.coalesced_indices
        accesses: dict[int, _PortAccess] = {}
        while True:
            reason = run_once()
            self.exits += 1
            if first_and_last[0] != first_and_last[1]:
                self._drain_coalesced()
            if reason == _EXIT_IO:
                header = io_header[0]
                access = accesses.get(header)
                if access is None:
                    access = self._resolve_port_access()
                    if access is None:
                        self._string_io()
                        continue
                    accesses[header] = access
                is_out, device, cell = access
                if is_out:
                    device(cell[0])
                else:
                    cell[0] = device()
            elif reason == _EXIT_MMIO:
                self._mmio_access()
            elif reason == _EXIT_INTR:
                vcpu.immediate_exit = False
                if not self._may_run.is_set():
                    self.parked.set()
                    self._may_run.wait()
                    self.parked.clear()
                if self.end is not None:
                    return self.end
                self.halted = self._halted_for_good()
            else:
                result = self._other_exit(vcpu.decode())
                if result is not None:
                    return result

    def _drain_coalesced(self) -> None:
        with self._slow_path_lock:
            while (run := self.vcpu.take_coalesced()) is not None:
                address, size, is_pio, data = run
                if is_pio:
                    self._ports.write_string(address, size, data)
                else:
                    for start in range(0, len(data), size):
                        value = int.from_bytes(data[start : start + size], "little")
                        self._mmio.write(address, size, value)

    def _resolve_port_access(self) -> _PortAccess | None:
        """How to answer this port exit and all that are like it; None if it takes more than that.

        ``kvm_run.io`` begins with direction, size, port and count, 64 bits together. So one number
        says what is to be done, and what a device does at it, needs to be found out only once.
        """
        io = self.vcpu.io
        if io.count != 1:
            return None
        is_out = io.direction == _IO_OUT
        device = (self._ports.writer if is_out else self._ports.reader)(io.port, io.size)
        if device is None:
            return None
        if self._device_lock is not None:
            device = _locked(self._device_lock, device)
        return is_out, device, self.vcpu.io_data().cast(_CELL_FORMATS[io.size])

    def _string_io(self) -> None:
        """The long way: ``count`` accesses to one port, or one that no device takes whole.

        REP INS and REP OUTS do the former in one exit.
        """
        io = self.vcpu.io
        data = self.vcpu.io_data()
        with self._slow_path_lock:
            if io.direction == _IO_OUT:
                self._ports.write_string(io.port, io.size, bytes(data))
            else:
                data[:] = self._ports.read_string(io.port, io.size, io.count)

    def _mmio_access(self) -> None:
        access = self.vcpu.mmio
        size = access.len
        with self._slow_path_lock:
            if access.is_write:
                value = int.from_bytes(bytes(access.data[0:size]), "little")
                self._mmio.write(access.phys_addr, size, value)
            else:
                value = self._mmio.read(access.phys_addr, size)
                self.vcpu.complete_mmio_read(value.to_bytes(size, "little"))

    def _halted_for_good(self) -> RunResult | None:
        """Why this vCPU cannot go on by itself, if so.

        With the in-kernel irqchip HLT does not exit: KVM just waits for an interrupt. Nothing in
        this machine sends an NMI, so a vCPU that cannot take an interrupt waits for ever, unless
        another vCPU restarts it. One that was never started waits for that, too.
        """
        state = self.vcpu.get_mp_state()
        if state == _MP_STATE_UNINITIALIZED:
            return RunResult(Outcome.HALTED, f"CPU {self.vcpu.id} was never started")
        if state != _MP_STATE_HALTED:
            return None
        regs = self.vcpu.get_regs()
        if regs.rflags & RFLAGS_IF:
            return None
        return RunResult(
            Outcome.HALTED,
            f"the guest halted for good: HLT at {regs.rip:#x} with interrupts off",
            report=self._registers(),
        )

    def _other_exit(self, reason: VcpuExit) -> RunResult | None:
        """What a rare exit means for the run; None to go on."""
        from kvm_bindings import exits

        match reason:
            case exits.Shutdown():
                return RunResult(
                    Outcome.TRIPLE_FAULT,
                    f"the guest triple-faulted near {self.vcpu.get_regs().rip:#x}",
                    report=self._registers(),
                )
            case exits.InternalError() if reason.is_emulation_failure:
                return self._emulation_failure(reason)
            case exits.Debug() if self._completer is not None:
                return self._complete(self._completer.at_breakpoint)
            case exits.SystemEvent(type=constants.KVM_SYSTEM_EVENT_RESET):
                return RunResult(Outcome.RESET, "the guest reset itself")
            case exits.SystemEvent(type=constants.KVM_SYSTEM_EVENT_SHUTDOWN):
                return RunResult(Outcome.POWERED_OFF, "the guest powered itself off")
            case exits.Hlt() | exits.IrqWindowOpen() | exits.SetTpr() | exits.TprAccess():
                return None  # only without an in-kernel irqchip; nothing to do for them
            case _:
                return RunResult(
                    Outcome.KVM_FAILURE,
                    f"KVM stopped the guest in a way that pyvmm has no answer to: {reason}",
                    report=self._registers(),
                )

    def _emulation_failure(self, failure: InternalError) -> RunResult | None:
        """Execute the instruction that KVM could not; if we cannot either, the run is over."""
        if self._completer is None and self._make_completer is not None:
            self._completer = self._make_completer(self.vcpu)
        if self._completer is None:
            return self._not_emulated(failure.insn_bytes)
        step = partial(self._completer.complete, failure.insn_bytes)
        return self._complete(step, failure.insn_bytes)

    def _complete(self, step: Callable[[], None], fetched: bytes = b"") -> RunResult | None:
        from pyvmm.completion.state import Unhandled

        try:
            with self._slow_path_lock:
                step()
        except Unhandled as reason:
            return self._not_emulated(fetched, str(reason))
        return None

    def _not_emulated(self, fetched: bytes, reason: str = "") -> RunResult:
        from pyvmm.debug.registers import cpu_mode

        regs, sregs = self.vcpu.get_regs(), self.vcpu.get_sregs()
        instruction = fetched or self._bytes_at(regs.rip + sregs.cs.base)
        shown = instruction.hex(" ") if instruction else "bytes not readable"
        name = self._name_of(regs.rip)
        where = f"{regs.rip:#x} in {name}" if name else f"{regs.rip:#x}"
        if self._completer is not None:
            disassembly = self._completer.disassemble(instruction)
            shown += f" ({disassembly}); pyvmm cannot either: {reason}"
        return RunResult(
            Outcome.EMULATION_FAILURE,
            f"KVM could not emulate the instruction at {where} ({cpu_mode(sregs)}): {shown}",
            report=self._registers(),
        )

    def _bytes_at(self, gva: int) -> bytes:
        """The bytes of an instruction, as far as they can be read; they may end at a page."""
        collected = b""
        while len(collected) < _LONGEST_INSTRUCTION_BYTES:
            address = gva + len(collected)
            translation = self.vcpu.translate(address)
            size_bytes = min(_LONGEST_INSTRUCTION_BYTES - len(collected), 0x1000 - address % 0x1000)
            if not translation.valid:
                break
            try:
                collected += self._read_memory(translation.physical_address, size_bytes)
            except GuestMemoryError:
                break
        return collected

    def _registers(self) -> str:
        from pyvmm.debug.registers import format_registers

        return format_registers(self.vcpu.get_regs(), self.vcpu.get_sregs())


def _locked(lock: Lock, device: Callable[..., Any]) -> Callable[..., Any]:
    def access(*value: int) -> Any:
        with lock:
            return device(*value)

    return access
