"""The machine: the one module that knows all the parts and puts them together.

    MachineConfig --> Machine.__enter__: open KVM, lay out memory, load a kernel, plan the boot
                      Machine.run:       run it and wait for its end --> RunResult

What stands where on the way:

    kvm, vm      /dev/kvm and the VM: interrupt chips and timer live in the kernel
    memory       guest RAM, handed to KVM as slots
    kernel       what the loader placed, and where it can be entered
    ports, mmio  which device answers at which address
    loop         the vCPU and its run loop, in a thread of its own

The thread that calls ``run`` only supervises: it waits for the end, for the timeout, for a signal
that Python delivers to it, and looks now and then whether the guest still moves.
"""

from __future__ import annotations

import signal
import threading
import time
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NoReturn

from kvm_bindings import Kvm, constants, install_kick_signal
from pyvmm import boot
from pyvmm.arch.x86_64 import layout, mptable
from pyvmm.boot.handover import Blob, Handover
from pyvmm.boot.memory_map import memory_map
from pyvmm.capabilities import check_required
from pyvmm.devices import ports
from pyvmm.devices.bus import MmioBus, PortBus
from pyvmm.devices.debug_exit import DebugExit
from pyvmm.devices.i8042 import I8042
from pyvmm.devices.pci_none import PciNone
from pyvmm.devices.power import Pm1Control
from pyvmm.devices.rtc import Rtc
from pyvmm.devices.scratch import ScratchPort
from pyvmm.devices.serial import Serial16550
from pyvmm.loader.cmdline import place_cmdline
from pyvmm.loader.image import KernelImage
from pyvmm.loader.initrd import place_initrd
from pyvmm.loader.load import load_kernel
from pyvmm.memory import GuestMemory
from pyvmm.outcome import Outcome, RunEnded, RunResult
from pyvmm.threads import start_thread
from pyvmm.vcpu_loop import VcpuLoop
from pyvmm.vcpu_setup import guest_cpuid, set_up_vcpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from kvm_bindings import Vm
    from pyvmm.arch.x86_64.registers import EntryState
    from pyvmm.config import MachineConfig

# How often the supervisor looks whether bytes wait in the coalesced ring of a vCPU that does not
# exit: the longest that the last byte before a HLT can take to be seen.
_TICK_S = 0.01
# After so many ticks without an exit the vCPU is kicked, to see whether it has halted for good.
_INSPECTION_TICKS = 25

STOPPED = RunResult(Outcome.STOPPED, "stopped")


class GsiLine:
    """One input of the in-kernel interrupt chips, as devices see it."""

    def __init__(self, vm: Vm, gsi: int) -> None:
        self._vm = vm
        self._gsi = gsi

    def set(self, level: bool) -> None:
        """Drive the line high or low."""
        self._vm.irq_line(self._gsi, level)


class Machine:
    """A machine as ``config`` describes it; a context manager that builds it on entry.

    ``console_output`` gets what the guest sends to its first serial port; it is called from the
    vCPU's thread. ``serial.receive`` takes what the guest shall read from there.

    Raises ConfigError if ``config`` does not make a machine; entering raises KernelImageError,
    InitrdError or CmdlineError for what the user gave, HostError or KvmError for what this host
    lacks.
    """

    def __init__(self, config: MachineConfig, console_output: Callable[[bytes], object]) -> None:
        config.check()
        self.config = config
        self._console_output = console_output
        self._stack = ExitStack()
        # Whoever ends the run puts something in. Not an Event: a signal handler that sets one
        # while the same thread waits for it waits for itself. A SimpleQueue is reentrant.
        self._ended: SimpleQueue[None] = SimpleQueue()
        self._ending: RunResult | BaseException = STOPPED

    def __enter__(self) -> Machine:
        with ExitStack() as stack:
            self.kvm = stack.enter_context(Kvm())
            check_required(self.kvm)
            self.memory = stack.enter_context(GuestMemory.create(
                self.config.memory_bytes,
                backing=self.config.backing,
                huge_pages=self.config.huge_pages,
            ))  # fmt: skip
            entry = self._load()
            self.vm = stack.enter_context(self.kvm.create_vm())
            self._set_up_vm()
            self._add_devices()
            self.vcpu = stack.enter_context(self.vm.create_vcpu(0))
            set_up_vcpu(self.vcpu, self._cpuid, entry)
            self.loop = VcpuLoop(self.vcpu, self.ports, self.mmio, self.memory.read)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back to the host. The run must have ended."""
        self._stack.close()

    @property
    def exits(self) -> int:
        """How often the guest has needed us."""
        return self.loop.exits

    def placements(self) -> Iterator[tuple[str, int, int]]:
        """What was put into guest memory, by address: (name, gpa, size in bytes)."""
        yield from sorted(self._placements, key=lambda placement: placement[1])

    # Building: each of these is one step of the way in ``__enter__``.

    def _load(self) -> EntryState:
        """Put kernel, command line, initrd and the protocol's tables into guest memory."""
        config = self.config
        with KernelImage.open(config.kernel) as image:
            self.kernel = load_kernel(image, self.memory, decompress=config.decompress_where)
        self.protocol, self.entry_gpa = boot.choose(config.protocol, self.kernel)
        cmdline = place_cmdline(config.cmdline, self.memory, self.kernel)
        initrd = place_initrd(config.initrd, self.memory, self.kernel)
        handover = Handover(self.kernel, memory_map(self.memory), cmdline, initrd)
        plan = boot.plan_boot(self.protocol, self.entry_gpa, handover)

        self._cpuid = guest_cpuid(self.kvm, apic_id=0, cpu_count=config.cpus)
        features = next(leaf for leaf in self._cpuid if leaf.function == 1)
        table = mptable.build(
            cpu_count=config.cpus,
            cpu_signature=features.eax,
            cpu_features=features.edx,
            base_gpa=layout.MPTABLE_GPA,
        )
        blobs = [*plan.blobs, Blob("MP table", layout.MPTABLE_GPA, table)]
        for blob in blobs:
            self.memory.write(blob.gpa, blob.data)
        self._placements = [
            *self.kernel.placements,
            cmdline,
            *([initrd] if initrd else []),
            *((blob.name, blob.gpa, len(blob.data)) for blob in blobs),
        ]
        return plan.entry

    def _set_up_vm(self) -> None:
        """Memory slots, then interrupt chips, then the timer, all before any vCPU.

        Slots first because it is faster: KVM waits 5 ms for others who may use the old list of
        slots, if there have been any who use the VM's buses; the interrupt chips do.
        """
        for slot, region in enumerate(self.memory):
            self.vm.set_user_memory_region(slot, region.base_gpa, region.buffer)
        self.vm.set_tss_addr(layout.TSS_GPA)
        self.vm.set_identity_map_addr(layout.IDENTITY_MAP_GPA)
        self.vm.create_irqchip()
        # A kernel that calibrates its TSC polls port 0x61; KVM answers there if it is told so.
        self.vm.create_pit2(constants.KVM_PIT_SPEAKER_DUMMY)

    def _add_devices(self) -> None:
        """The devices of this machine, each at its ports."""
        self.mmio = MmioBus()
        self.ports = PortBus()
        add = self.ports.add
        self.serial = Serial16550(GsiLine(self.vm, ports.COM1_IRQ), self._console_output)
        keyboard_line = GsiLine(self.vm, ports.I8042_KBD_IRQ)
        add(ports.COM1_BASE, ports.COM_PORTS, self.serial, "COM1")
        add(ports.I8042_BASE, ports.I8042_PORTS, I8042(keyboard_line, _end_by_reset), "i8042")
        add(ports.RTC_BASE, ports.RTC_PORTS, self._rtc(), "RTC")
        add(ports.POST_CODE_PORT, 1, ScratchPort(), "POST code")
        add(ports.IO_DELAY_PORT, 1, ScratchPort(), "I/O delay")
        add(ports.DEBUG_EXIT_BASE, ports.DEBUG_EXIT_PORTS, DebugExit(_end_by_exit), "debug exit")
        pm1_control = Pm1Control(_end_by_power_off)
        add(ports.PM1A_CONTROL_PORT, ports.PM1A_CONTROL_PORTS, pm1_control, "ACPI PM1a control")
        add(ports.PCI_CONFIG_BASE, ports.PCI_CONFIG_PORTS, PciNone(), "PCI configuration")
        # What is written to the transmit register need not exit byte by byte: KVM collects it.
        if self.vm.check_extension(constants.KVM_CAP_COALESCED_PIO):
            self.vm.register_coalesced_zone(ports.COM1_BASE, 1, pio=True)

    def _rtc(self) -> Rtc:
        """The clock; its CMOS RAM says how much memory there is, for those who still ask there."""
        low, *high = self.memory.regions
        return Rtc(
            time.time,
            low_memory_bytes=low.size_bytes,
            high_memory_bytes=sum(region.size_bytes for region in high),
        )

    # Running.

    def run(self, timeout_s: float | None = None) -> RunResult:
        """Run the guest until the run ends, at the latest after ``timeout_s``. Once in a life.

        To be called from the main thread if signal handlers are to call ``stop``.
        """
        arguments = (install_kick_signal(),)
        thread = threading.Thread(target=self._run_vcpu, args=arguments, name="vcpu0", daemon=True)
        start_thread(thread)
        self._vcpu_thread_id = thread.native_id or 0
        try:
            self._supervise(timeout_s)
        finally:
            self._kick_until_ended(thread)
        if isinstance(self._ending, BaseException):
            raise self._ending
        return self._ending

    def stop(self, result: RunResult = STOPPED) -> None:
        """End the run with ``result``; returns at once. From any thread, or a signal handler."""
        if self.loop.end is None:
            self.loop.end = result
        self._ended.put(None)

    def _run_vcpu(self, kick_signal: int) -> None:
        # We may have been started with signals blocked. This one must come through.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {kick_signal})
        try:
            self._ending = self.loop.run()
        except BaseException as error:  # whatever it is, it belongs to the caller of run()
            self._ending = error
        self._ended.put(None)

    def _supervise(self, timeout_s: float | None) -> None:
        """Wait for the end. Meanwhile look after a vCPU that does not exit by itself.

        Bytes in the coalesced ring are seen at the next exit, and HLT with interrupts off gives
        none: a kick makes the vCPU's own thread look, which alone may touch its state.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        exits_before, idle_ticks = -1, 0
        while not self._has_ended():
            if deadline is not None and time.monotonic() >= deadline:
                self.stop(
                    RunResult(Outcome.TIMEOUT, f"timeout: still running after {timeout_s:g} s")
                )
                return
            exits = self.loop.exits
            idle_ticks = idle_ticks + 1 if exits == exits_before else 0
            exits_before = exits
            if idle_ticks and (self.vcpu.coalesced_pending or idle_ticks % _INSPECTION_TICKS == 0):
                self.vcpu.kick(self._vcpu_thread_id)

    def _has_ended(self) -> bool:
        """Wait for a tick, or until somebody has ended the run: has anybody?"""
        try:
            self._ended.get(timeout=_TICK_S)
        except Empty:
            return False
        return True

    def _kick_until_ended(self, thread: threading.Thread) -> None:
        """Get the vCPU's thread out of the guest, whatever has happened to ours.

        One kick is enough if the vCPU is in KVM_RUN; it may also be in a device, waiting for the
        reader of the console, and comes back from there by itself.
        """
        if self.loop.end is None:
            self.loop.end = STOPPED
        while thread.is_alive():
            self.vcpu.kick(self._vcpu_thread_id)
            thread.join(_TICK_S)


# How a guest asks for the end: by way of a device, out of the middle of the vCPU's loop.


def _end_by_reset() -> NoReturn:
    raise RunEnded(RunResult(Outcome.RESET, "the guest reset itself"))


def _end_by_power_off() -> NoReturn:
    raise RunEnded(RunResult(Outcome.POWERED_OFF, "the guest powered itself off"))


def _end_by_exit(status: int) -> NoReturn:
    raise RunEnded(RunResult(Outcome.GUEST_EXIT, f"the guest exited with {status}", status))
