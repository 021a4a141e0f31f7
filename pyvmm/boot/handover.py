"""What every boot protocol starts from, and what it comes to.

A protocol is a pure function: ``Handover`` in, ``BootPlan`` out. It touches neither guest memory
nor KVM, so what it decides can be printed, tested and compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyvmm.errors import GuestMemoryError

if TYPE_CHECKING:
    from pyvmm.arch.x86_64.registers import EntryState
    from pyvmm.boot.memory_map import MemoryMapEntry
    from pyvmm.boot.screen_info import ScreenInfo
    from pyvmm.loader.load import LoadedKernel, Placement
    from pyvmm.memory import GuestMemory


class Module(NamedTuple):
    """A file that a kernel is given beside itself: the initrd, a hypervisor's first guest."""

    placement: Placement
    name: bytes
    """Its file's name, without white space."""
    cmdline: bytes = b""


class Handover(NamedTuple):
    """What the kernel must be told: where it is itself, its memory, command line and initrd."""

    kernel: LoadedKernel
    memory_map: list[MemoryMapEntry]
    cmdline: Placement
    initrd: Placement | None = None
    """For the Linux protocols, which know of no other module."""
    modules: tuple[Module, ...] = ()
    """For PVH and Multiboot, the initrd included: it is the first."""
    rsdp_gpa: int = 0
    """Where ACPI's tables begin; 0 if there are none."""
    rng_seed: bytes = b""
    """Random bytes that the kernel may count on, if the protocol has a way to hand them over."""
    screen_info: ScreenInfo | None = None
    """The screen, if there is one."""


class Blob(NamedTuple):
    """Bytes to put into guest memory before the first instruction."""

    name: str
    gpa: int
    data: bytes
    rule: str = ""
    """The rule that is broken if there is no RAM for it."""

    def write_to(self, memory: GuestMemory) -> None:
        """Put it there. Raises GuestMemoryError with its rule unless all of it is RAM."""
        end_gpa = self.gpa + len(self.data)
        if not memory.contains(self.gpa, len(self.data)):
            raise GuestMemoryError(
                f"{self.name} belongs at {self.gpa:#x}..{end_gpa:#x}, which is not RAM; "
                "give the guest more memory with --mem",
                self.rule,
            )
        memory.write(self.gpa, self.data)


class BootPlan(NamedTuple):
    """What a protocol wants in memory, and in the boot processor's registers."""

    blobs: list[Blob]
    entry: EntryState
