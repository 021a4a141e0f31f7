"""What a machine is to be: one frozen value, checked before anything is opened."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.arch.x86_64 import layout
from pyvmm.boot import Protocol
from pyvmm.errors import ConfigError
from pyvmm.loader.load import Decompress
from pyvmm.memory import Backing, HugePages
from pyvmm.units import PAGE_SIZE, GiB, MiB, align_down, format_size

if TYPE_CHECKING:
    from pyvmm.loader.kaslr import Kaslr


class Tune(Enum):
    """For which hosts the kernel's command line is added to (tuning.py)."""

    AUTO = "auto"
    """For this one: where KVM emulates the guest's kernel mode, otherwise not at all."""
    SOFTWARE = "software"
    """For one where KVM emulates the guest's kernel mode."""
    NONE = "none"


DEFAULT_MEMORY_BYTES = 512 * MiB
MAXIMUM_CPUS = 32
"""As many as the MP table has room for beside its other entries, less a few."""
MINIMUM_MEMORY_BYTES = 2 * MiB
HUGE_PAGE_SIZE = 2 * MiB  # of x86-64 (SDM 3A 4.5); the default of Linux's hugetlbfs
DEFAULT_CMDLINE = "earlyprintk=ttyS0 console=ttyS0 reboot=k panic=-1"
"""The console on the serial port from the first line on, resets by the keyboard controller, and a
reset, thus the end of the run, after a panic."""


class MachineConfig(NamedTuple):
    """A machine to be built. ``check`` says whether it can be."""

    kernel: str
    """Path of a kernel: a vmlinux, a bzImage, or what loader/image.py knows besides."""
    cmdline: str | None = None
    """None: the one that is in the image, if it is a unified kernel image, or DEFAULT_CMDLINE."""
    initrd: str | None = None
    """None: the one that is in the image, if there is one."""
    modules: tuple[tuple[str, str], ...] = ()
    """More files for a kernel entered by PVH or Multiboot: pairs of a path and a command line."""
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    cpus: int = 1
    protocol: Protocol = Protocol.AUTO
    decompress: Decompress | None = None
    """None: on the host, unless the protocol is one that only the bzImage's own code offers."""
    backing: Backing = Backing.ANONYMOUS
    huge_pages: HugePages = HugePages.TRANSPARENT
    reboot: bool = True
    """Whether a guest that resets itself starts again; if not, that ends the run."""
    kaslr: Kaslr | None = None
    """Where the kernel is to be moved to, anew at each reset; None: it stays where it was linked
    to. A bzImage that decompresses itself moves itself."""
    tune: Tune = Tune.AUTO

    def check(self) -> None:
        """Raise ConfigError, saying what is wrong, if the values do not make a machine."""
        if not 1 <= self.cpus <= MAXIMUM_CPUS:
            raise ConfigError(
                f"a machine with {self.cpus} CPUs was asked for; expected 1 to {MAXIMUM_CPUS}"
            )
        if self.memory_bytes < MINIMUM_MEMORY_BYTES:
            raise ConfigError(
                f"{format_size(self.memory_bytes)} of memory was asked for; "
                f"expected at least {format_size(MINIMUM_MEMORY_BYTES)} (--mem 512M is the default)"
            )
        if self.memory_bytes % PAGE_SIZE:
            raise ConfigError(
                f"{self.memory_bytes} bytes of memory were asked for; "
                f"expected a multiple of the page size, {PAGE_SIZE}"
            )
        if self.huge_pages is HugePages.HUGETLB and self.memory_bytes % HUGE_PAGE_SIZE:
            raise ConfigError(
                f"{format_size(self.memory_bytes)} of memory was asked for, of huge pages; "
                f"expected a multiple of their size, {format_size(HUGE_PAGE_SIZE)}"
            )
        if self.memory_bytes > MAXIMUM_MEMORY_BYTES:
            raise ConfigError(
                f"{format_size(self.memory_bytes)} of memory was asked for; "
                f"expected at most {format_size(MAXIMUM_MEMORY_BYTES)}"
            )
        if self.protocol is Protocol.LINUX32 and self.decompress is Decompress.HOST:
            raise ConfigError(
                "--protocol linux32 enters a bzImage's own decompressor; "
                "it cannot go with --decompress host"
            )
        if self.protocol is Protocol.PVH and self.decompress is Decompress.GUEST:
            raise ConfigError(
                "--protocol pvh enters the vmlinux inside a bzImage; "
                "it cannot go with --decompress guest"
            )
        if self.kaslr is not None:
            self._check_kaslr()

    def _check_kaslr(self) -> None:
        if self.decompress_where is Decompress.GUEST:
            raise ConfigError(
                "--kaslr moves a kernel that is decompressed on the host; one that decompresses "
                "itself moves itself; leave out --kaslr, or --decompress guest and --protocol "
                "linux32"
            )
        if self.protocol is Protocol.PVH:
            raise ConfigError(
                "--kaslr cannot go with --protocol pvh, which has no way to tell a kernel that it "
                "was moved; expected --protocol linux64 or none"
            )
        if self.cmdline is not None and "nokaslr" in self.cmdline.split():
            raise ConfigError(
                "--kaslr was given, and nokaslr on the kernel's command line; leave out one"
            )

    @property
    def decompress_where(self) -> Decompress:
        """Who decompresses a bzImage."""
        if self.decompress is not None:
            return self.decompress
        return Decompress.GUEST if self.protocol is Protocol.LINUX32 else Decompress.HOST


# RAM above the gap is one memory slot, and KVM counts a slot's pages in 31 bits
# (KVM_MEM_MAX_NR_PAGES, include/linux/kvm_host.h).
MAXIMUM_MEMORY_BYTES = layout.GAP_BASE + align_down(((1 << 31) - 1) * PAGE_SIZE, GiB)
