"""The board: one machine from power-on to power-off, and the one module that knows all its parts.

    MachineConfig --> Board.__enter__: open KVM, lay out memory, load a kernel, plan the boot,
                      make the VM, its devices and its vCPUs

What stands where afterwards:

    kvm, vm      /dev/kvm and the VM: interrupt chips live in the kernel, and the timer mostly does
    memory       guest RAM, handed to KVM as slots
    kernel       what the loader placed, and where it can be entered
    ports, mmio  which device answers at which address
    serials      the UARTs, ttyS0 first
    loops        the vCPUs' run loops, to be run by a thread each

A reset is a new board: nothing of the old one can be left over in it.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from threading import Lock
from typing import TYPE_CHECKING, NoReturn

from kvm_bindings import Kvm, constants, host_address
from pyvmm.arch.x86_64 import bda, cpuid, layout, mptable
from pyvmm.arch.x86_64.acpi import tables
from pyvmm.boot.handover import Blob
from pyvmm.capabilities import check_required
from pyvmm.devices import ports
from pyvmm.devices.bus import MmioBus, PortBus
from pyvmm.devices.debug_exit import DebugExit
from pyvmm.devices.i8042 import I8042
from pyvmm.devices.pci_none import PciNone
from pyvmm.devices.power import AcpiPm
from pyvmm.devices.pvpanic import PANICKED, PvPanic
from pyvmm.devices.rtc import Rtc
from pyvmm.devices.scratch import ScratchPort
from pyvmm.devices.serial import Serial16550
from pyvmm.loader.image import KernelImage
from pyvmm.loader.load import Placement
from pyvmm.memory import GuestMemory
from pyvmm.outcome import Outcome, RunEnded, RunResult
from pyvmm.prepare import prepare
from pyvmm.vcpu_loop import VcpuLoop
from pyvmm.vcpu_setup import CpuidSource, set_up_vcpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from kvm_bindings import Vcpu, Vm
    from pyvmm.arch.x86_64.registers import EntryState
    from pyvmm.completion.completer import Completer
    from pyvmm.config import MachineConfig
    from pyvmm.debug.symbols import SymbolTable
    from pyvmm.devices.pit import Pit

    Output = Callable[[bytes], object]


# How far apart the ticks of a PIT of ours are, at least (devices/pit.py): while Linux boots nobody
# waits for them; afterwards they share the processor out, and end sleeps.
_TICK_FLOOR_OF_BOOT_NS = 250_000_000
_TICK_FLOOR_NS = 20_000_000


class GsiLine:
    """One input of the in-kernel interrupt chips, as devices see it."""

    def __init__(self, vm: Vm, gsi: int) -> None:
        self._vm = vm
        self._gsi = gsi

    def set(self, level: bool) -> None:
        """Drive the line high or low."""
        self._vm.irq_line(self._gsi, level)


class Board:
    """A board as ``config`` describes it; a context manager that builds it on entry.

    ``serial_outputs``: for each of ttyS0 to ttyS3 what takes the bytes that the guest sends there,
    called from a vCPU's thread; None where there is to be no port. ``on_panic`` is called likewise,
    when the guest's kernel says by pvpanic that it is done for.

    Entering raises KernelImageError, InitrdError or CmdlineError for what the user gave, HostError
    or KvmError for what this host lacks.
    """

    def __init__(
        self,
        config: MachineConfig,
        serial_outputs: Sequence[Output | None],
        on_panic: Callable[[], object],
    ) -> None:
        self.config = config
        self._on_panic = on_panic
        self._serial_outputs = serial_outputs
        self._stack = ExitStack()
        self._symbols: SymbolTable | None = None
        self.is_booting = False
        """Whether kernel mode is emulated, and there was no system call yet: it takes long."""

    def __enter__(self) -> Board:
        config = self.config
        with ExitStack() as stack:
            self.kvm = stack.enter_context(Kvm())
            check_required(self.kvm)
            self._supported_cpuid = self.kvm.get_supported_cpuid()
            self._emulated = self.is_booting = self._emulates_kernel_mode()
            self.memory = stack.enter_context(GuestMemory.create(
                config.memory_bytes, backing=config.backing, huge_pages=config.huge_pages,
                host_address=host_address,
            ))  # fmt: skip
            entry = self._load()
            self.vm = stack.enter_context(self.kvm.create_vm())
            self._set_up_vm()
            self._add_devices(stack)
            self._add_vcpus(stack, entry)
            self._write_tables()
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
        """Give everything back to the host. No vCPU may be running."""
        self._stack.close()

    def placements(self) -> Iterator[Placement]:
        """What was put into guest memory, by address."""
        yield from sorted(self._placements, key=lambda placement: placement.base_gpa)

    # Each of these is one step of the way in ``__enter__``.

    def _emulates_kernel_mode(self) -> bool:
        """Whether KVM has no hardware under it. Most hosts' CPUID settles it, others are probed."""
        if cpuid.offers_virtualization(self._supported_cpuid):
            return False
        from pyvmm.probe import Virtualization, probe_virtualization

        return probe_virtualization(self.kvm) is Virtualization.SOFTWARE

    def _load(self) -> EntryState:
        """Put kernel, command line, initrd and the protocol's tables into guest memory."""
        with KernelImage.open(self.config.kernel) as image:
            prepared = prepare(self.config, image, self.memory, emulated=self._emulated)
        self.kernel = prepared.kernel
        self.protocol = prepared.protocol
        self.entry_gpa = prepared.entry_gpa
        self.notes = prepared.notes
        tuned = prepared.tuned
        self.tuning = tuned.added if tuned is not None else ()
        # With one processor only: more of them have their local APICs' timers for ticks.
        has_dear_ticks = self._emulated and self.config.cpus == 1
        self._makes_ticks = has_dear_ticks and tuned is not None and tuned.ticks_by_pit
        self._placements = prepared.placements
        return prepared.plan.entry

    def _write(self, blob: Blob) -> None:
        blob.write_to(self.memory)
        self._placements.append(Placement(blob.name, blob.gpa, len(blob.data)))

    def _set_up_vm(self) -> None:
        """Memory slots, then interrupt chips, then the timer, all before any vCPU.

        Slots first because it is faster: KVM waits 5 ms for others who may use the old list of
        slots, if there have been any who use the VM's buses; the interrupt chips do.
        """
        for slot, region in enumerate(self.memory):
            self.vm.set_user_memory_region(slot, region.base_gpa, region.view)
        self.vm.set_tss_addr(layout.TSS_GPA)
        self.vm.set_identity_map_addr(layout.IDENTITY_MAP_GPA)
        self.vm.create_irqchip()
        if not self._makes_ticks:
            # A kernel that calibrates its TSC polls port 0x61; KVM answers there if told so.
            self.vm.create_pit2(constants.KVM_PIT_SPEAKER_DUMMY)

    def _add_vcpus(self, stack: ExitStack, entry: EntryState) -> None:
        """The processors: the first starts at ``entry``, the others when it sends them a SIPI."""
        cpuid_source = CpuidSource(
            self.kvm,
            self._supported_cpuid,
            self.config.cpus,
            emulated=self._emulated,
            offers_tsc_deadline=not self._makes_ticks,
        )
        device_lock = Lock() if self.config.cpus > 1 else None
        self.loops: list[VcpuLoop] = []
        for apic_id in range(self.config.cpus):
            vcpu = stack.enter_context(self.vm.create_vcpu(apic_id))
            leaves = cpuid_source.leaves_for(vcpu)
            set_up_vcpu(vcpu, leaves, entry if apic_id == 0 else None)
            self.loops.append(
                VcpuLoop(
                    vcpu,
                    self.ports,
                    self.mmio,
                    self.memory.read,
                    device_lock,
                    self._make_completer,
                    self.name_of,
                )
            )
            if apic_id == 0:
                self._features = next(leaf for leaf in leaves if leaf.function == 1)

    def _make_completer(self, vcpu: Vcpu) -> Completer:
        """What executes the instructions that this host's KVM cannot: most hosts need none."""
        from pyvmm.completion.completer import Completer
        from pyvmm.completion.syscall_cure import SyscallCure
        from pyvmm.probe import syscall_enters_the_kernel

        xsave_bytes = self.vm.check_extension(constants.KVM_CAP_XSAVE2)
        cure = None
        if syscall_enters_the_kernel(self.kvm):  # and we will not see the first one
            self._take_first_system_call()
        else:
            cure = SyscallCure(vcpu, on_first=self._take_first_system_call)
        return Completer(vcpu, self.memory, xsave_bytes, cure)

    def name_of(self, gva: int) -> str | None:
        """Which function of the kernel's ``gva`` is in, by the symbols that it carries."""
        from pyvmm.debug.kallsyms import find_symbols

        if self._symbols is None:
            size_bytes = self.kernel.end_gpa - self.kernel.start_gpa
            self._symbols = find_symbols(self.memory.read(self.kernel.start_gpa, size_bytes))
        return self._symbols.describe(gva) if self._symbols is not None else None

    def _take_first_system_call(self) -> None:
        """The kernel has booted; the programs that it runs want their turns, and to sleep."""
        self.is_booting = False
        if self._pit is not None:
            self._pit.floor_ns = _TICK_FLOOR_NS

    def _write_tables(self) -> None:
        """What tells a kernel of processors, interrupts and devices: ACPI's tables.

        And an MP table and a BIOS data area, for kernels that do without ACPI.
        """
        com_ports = [
            base if serial else 0
            for (base, _), serial in zip(ports.COM, self.serials, strict=False)
        ]
        self._write(Blob("BIOS data area", layout.BDA_GPA, bda.build(com_ports)))
        acpi = tables.build(
            base_gpa=layout.ACPI_GPA,
            max_bytes=layout.ACPI_MAX_BYTES,
            cpu_count=self.config.cpus,
            serial_ports=[
                port for port, serial in zip(ports.COM, self.serials, strict=False) if serial
            ],
        )
        self._write(Blob("ACPI tables", layout.ACPI_GPA, acpi))
        table = mptable.build(
            cpu_count=self.config.cpus,
            cpu_signature=self._features.eax,
            cpu_features=self._features.edx,
            base_gpa=layout.MPTABLE_GPA,
        )
        self._write(Blob("MP table", layout.MPTABLE_GPA, table))

    def _add_devices(self, stack: ExitStack) -> None:
        """The devices of this machine, each at its ports."""
        self.mmio = MmioBus()
        self.ports = PortBus()
        add = self.ports.add
        self.serials: list[Serial16550 | None] = []
        # What is written to the transmit register need not exit byte by byte: KVM collects it.
        can_coalesce = self.vm.check_extension(constants.KVM_CAP_COALESCED_PIO)
        for (base, irq), output in zip(ports.COM, self._serial_outputs, strict=False):
            serial = None
            if output is not None:
                serial = Serial16550(GsiLine(self.vm, irq), output, fifo_bytes=64)
                add(base, ports.COM_PORTS, serial, f"UART at {base:#x}")
                if can_coalesce:
                    self.vm.register_coalesced_zone(base, 1, pio=True)
            self.serials.append(serial)
        self._pit: Pit | None = None
        if self._makes_ticks:
            from pyvmm.devices.pit import Pit, PortB

            self._pit = Pit(GsiLine(self.vm, ports.PIT_IRQ), _TICK_FLOOR_OF_BOOT_NS)
            stack.callback(self._pit.close)
            add(ports.PIT_BASE, ports.PIT_PORTS, self._pit, "PIT")
            add(ports.PORT_B, 1, PortB(self._pit), "port B")
        keyboard_line = GsiLine(self.vm, ports.I8042_KBD_IRQ)
        i8042 = I8042(keyboard_line, _end_by_reset)
        for offset in (ports.I8042_DATA_OFFSET, ports.I8042_COMMAND_OFFSET):
            add(ports.I8042_BASE + offset, 1, i8042, "i8042", first_offset=offset)
        add(ports.RTC_BASE, ports.RTC_PORTS, self._rtc(), "RTC")
        add(ports.POST_CODE_PORT, 1, ScratchPort(), "POST code")
        add(ports.IO_DELAY_PORT, 1, ScratchPort(), "I/O delay")
        add(ports.DEBUG_EXIT_BASE, ports.DEBUG_EXIT_PORTS, DebugExit(_end_by_exit), "debug exit")
        self.power = AcpiPm(GsiLine(self.vm, ports.SCI_IRQ), _end_by_power_off)
        add(ports.PM1A_EVENT_PORT, ports.PM1A_PORTS, self.power, "ACPI PM1 block")
        add(ports.PVPANIC_PORT, 1, PvPanic(self._take_panic_event), "pvpanic")
        add(ports.PCI_CONFIG_BASE, ports.PCI_CONFIG_PORTS, PciNone(), "PCI configuration")

    def _take_panic_event(self, event: int) -> None:
        # With a crash kernel loaded the guest goes on by itself.
        if event & PANICKED:
            self._on_panic()

    def _rtc(self) -> Rtc:
        """The clock; its CMOS RAM says how much memory there is, for those who still ask there."""
        low, *high = self.memory.regions
        return Rtc(
            time.time,
            low_memory_bytes=low.size_bytes,
            high_memory_bytes=sum(region.size_bytes for region in high),
        )


# How a guest asks for the end: by way of a device, out of the middle of a vCPU's loop.


def _end_by_reset() -> NoReturn:
    raise RunEnded(RunResult(Outcome.RESET, "the guest reset itself"))


def _end_by_power_off() -> NoReturn:
    raise RunEnded(RunResult(Outcome.POWERED_OFF, "the guest powered itself off"))


def _end_by_exit(status: int) -> NoReturn:
    raise RunEnded(RunResult(Outcome.GUEST_EXIT, f"the guest exited with {status}", status))
