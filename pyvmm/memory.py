"""Guest memory: RAM around the 32-bit gap, and checked ways into it.

A PC keeps its interrupt controllers, firmware and device registers just below 4 GiB. RAM that
would reach into that range continues above it, so a guest has one region or two:

    0 ... min(size, gap)            below the gap
    4 GiB ... 4 GiB + the rest      above it

Every access names a guest physical address (``gpa``) and a size, is checked against the regions,
and is refused with GuestMemoryError if any byte of it is not RAM. Views are the guest's memory
itself, not copies of it: the guest sees what is written, and writes what will be read.

Nothing here knows about KVM; ``GuestRegion.view`` is what the machine hands to KVM as a slot.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from enum import Enum
from types import TracebackType

from pyvmm.arch.x86_64 import layout
from pyvmm.errors import GuestMemoryError, HostError
from pyvmm.units import PAGE_SIZE, MiB, format_size

Buffer = bytes | bytearray | memoryview | mmap.mmap

_HUGE_PAGE_BYTES = 2 * MiB  # what one entry of a page directory can map (SDM 3A 4.5.4)


class Backing(Enum):
    """What the host keeps a region in."""

    ANONYMOUS = "anonymous"
    """Private anonymous memory: the default, and the fastest."""
    MEMFD = "memfd"
    """A memfd, for what must share guest memory with another process."""


class HugePages(Enum):
    """Which pages the host backs guest memory with."""

    TRANSPARENT = "transparent"
    """Ask for transparent huge pages (madvise): a 53 MB kernel is placed in 8 ms, not 28."""
    NEVER = "never"
    """4 KiB pages: least memory, slower to fill."""
    HUGETLB = "hugetlb"
    """Reserved 2 MiB pages from the host's pool (vm.nr_hugepages), through a memfd."""


class GuestRegion:
    """One run of RAM: ``base_gpa`` to ``end_gpa`` (exclusive), which is ``view``.

    ``view`` begins ``offset`` bytes into ``buffer``, the mapping that it is a part of.
    """

    __slots__ = ("base_gpa", "buffer", "end_gpa", "fd", "size_bytes", "view")

    def __init__(
        self,
        base_gpa: int,
        size_bytes: int,
        buffer: mmap.mmap,
        fd: int | None,
        offset: int = 0,
    ) -> None:
        self.base_gpa = base_gpa
        self.size_bytes = size_bytes
        self.end_gpa = base_gpa + size_bytes
        self.buffer = buffer
        self.fd = fd
        self.view = memoryview(buffer)[offset : offset + size_bytes]

    def __repr__(self) -> str:
        return f"GuestRegion({self.base_gpa:#x}..{self.end_gpa:#x})"


class GuestMemory:
    """A guest's RAM. A context manager: leaving it gives the memory back to the host."""

    def __init__(self, regions: list[GuestRegion]) -> None:
        self.regions = tuple(sorted(regions, key=lambda region: region.base_gpa))
        self._bases = [region.base_gpa for region in self.regions]
        self.size_bytes = sum(region.size_bytes for region in self.regions)

    @classmethod
    def create(
        cls,
        size_bytes: int,
        *,
        backing: Backing = Backing.ANONYMOUS,
        huge_pages: HugePages = HugePages.TRANSPARENT,
        host_address: Callable[[mmap.mmap], int] | None = None,
    ) -> GuestMemory:
        """RAM of ``size_bytes`` (a multiple of a page), split at the 32-bit gap, all zero.

        ``host_address`` says where a mapping lies, which Python does not. With it regions begin
        on a huge page's boundary, so that one entry of the tables by which a processor finds the
        guest's memory can map 2 MiB of it: a kernel gets to its init in 2.0 s, not 3.0 (in the
        lab). Linux aligns large mappings itself since 6.7.

        Raises GuestMemoryError for a size that is no RAM size, HostError if the host has not the
        memory to give.
        """
        if size_bytes <= 0 or size_bytes % PAGE_SIZE:
            raise GuestMemoryError(
                f"guest memory of {size_bytes} bytes was asked for; expected a positive multiple "
                f"of the page size, {PAGE_SIZE}"
            )
        low_bytes = min(size_bytes, layout.GAP_BASE)
        extents = [(0, low_bytes)]
        if size_bytes > low_bytes:
            extents.append((layout.GAP_END, size_bytes - low_bytes))
        regions: list[GuestRegion] = []
        try:
            for base_gpa, region_bytes in extents:
                regions.append(
                    _map_region(base_gpa, region_bytes, backing, huge_pages, host_address)
                )
        except (OSError, OverflowError) as error:
            cls(regions).close()
            remedy = "ask for less with --mem"
            if huge_pages is HugePages.HUGETLB:
                remedy = "raise vm.nr_hugepages, or use transparent huge pages"
            raise HostError(
                f"the host did not give {format_size(size_bytes)} of memory for the guest "
                f"({error}); {remedy}"
            ) from error
        return cls(regions)

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back. Views handed out before must not be used any more.

        A view that somebody still holds keeps its region mapped until it goes.
        """
        for region in self.regions:
            try:
                region.view.release()
                region.buffer.close()
            except BufferError:
                pass  # a view is still out; the map goes when the view does
            if region.fd is not None:
                os.close(region.fd)
                region.fd = None
        self.regions = ()
        self._bases = []

    @property
    def end_gpa(self) -> int:
        """The address after the highest byte of RAM."""
        return self.regions[-1].end_gpa

    def __iter__(self) -> Iterator[GuestRegion]:
        return iter(self.regions)

    def region_of(self, gpa: int, size_bytes: int) -> GuestRegion | None:
        """The region that holds all of ``gpa`` .. ``gpa + size_bytes``, or None."""
        index = bisect_right(self._bases, gpa) - 1
        if index < 0 or size_bytes < 0:
            return None
        region = self.regions[index]
        return region if gpa + size_bytes <= region.end_gpa else None

    def contains(self, gpa: int, size_bytes: int) -> bool:
        """Whether every byte of the range is RAM."""
        return self.region_of(gpa, size_bytes) is not None

    def view(self, gpa: int, size_bytes: int) -> memoryview:
        """``size_bytes`` of guest memory at ``gpa``: writable, not copied.

        Raises GuestMemoryError unless all of it is RAM.
        """
        region = self.region_of(gpa, size_bytes)
        if region is None:
            raise GuestMemoryError(
                f"guest address {gpa:#x}..{gpa + size_bytes:#x} is not RAM; RAM is "
                + ", ".join(f"{r.base_gpa:#x}..{r.end_gpa:#x}" for r in self.regions)
            )
        start = gpa - region.base_gpa
        return region.view[start : start + size_bytes]

    def read(self, gpa: int, size_bytes: int) -> bytes:
        """A copy of ``size_bytes`` at ``gpa``."""
        return bytes(self.view(gpa, size_bytes))

    def write(self, gpa: int, data: Buffer) -> None:
        """Put ``data`` at ``gpa``."""
        with memoryview(data) as source:
            self.view(gpa, source.nbytes)[:] = source.cast("B")

    def fill_zero(self, gpa: int, size_bytes: int) -> None:
        """Make ``size_bytes`` at ``gpa`` zero."""
        target = self.view(gpa, size_bytes)
        for start in range(0, size_bytes, MiB):
            part = target[start : start + MiB]
            part[:] = bytes(len(part))

    def read_file(self, gpa: int, fd: int, offset: int, size_bytes: int) -> None:
        """Read ``size_bytes`` of the file ``fd`` from ``offset`` straight into place at ``gpa``.

        Raises GuestMemoryError if the range is not RAM, or the file is shorter.
        """
        target = self.view(gpa, size_bytes)
        done = 0
        while done < size_bytes:
            count = os.preadv(fd, [target[done:]], offset + done)
            if count == 0:
                raise GuestMemoryError(
                    f"the file ended {size_bytes - done} bytes before the {size_bytes} bytes "
                    f"that belong at guest address {gpa:#x}; was it changed while being read?"
                )
            done += count

    def read_u8(self, gpa: int) -> int:
        """The byte at ``gpa``."""
        return self.view(gpa, 1)[0]

    def read_u16(self, gpa: int) -> int:
        """The little-endian 16-bit number at ``gpa``."""
        return int.from_bytes(self.view(gpa, 2), "little")

    def read_u32(self, gpa: int) -> int:
        """The little-endian 32-bit number at ``gpa``."""
        return int.from_bytes(self.view(gpa, 4), "little")

    def read_u64(self, gpa: int) -> int:
        """The little-endian 64-bit number at ``gpa``."""
        return int.from_bytes(self.view(gpa, 8), "little")

    def write_u8(self, gpa: int, value: int) -> None:
        """Put an 8-bit number at ``gpa``. Raises OverflowError if it does not fit."""
        self.write(gpa, value.to_bytes(1, "little"))

    def write_u16(self, gpa: int, value: int) -> None:
        """Put a little-endian 16-bit number at ``gpa``. Raises OverflowError likewise."""
        self.write(gpa, value.to_bytes(2, "little"))

    def write_u32(self, gpa: int, value: int) -> None:
        """Put a little-endian 32-bit number at ``gpa``. Raises OverflowError likewise."""
        self.write(gpa, value.to_bytes(4, "little"))

    def write_u64(self, gpa: int, value: int) -> None:
        """Put a little-endian 64-bit number at ``gpa``. Raises OverflowError likewise."""
        self.write(gpa, value.to_bytes(8, "little"))


def _map_region(
    base_gpa: int,
    size_bytes: int,
    backing: Backing,
    huge_pages: HugePages,
    host_address: Callable[[mmap.mmap], int] | None,
) -> GuestRegion:
    fd: int | None = None
    offset = 0
    try:
        if huge_pages is HugePages.HUGETLB or backing is Backing.MEMFD:
            flags = os.MFD_CLOEXEC
            if huge_pages is HugePages.HUGETLB:
                flags |= os.MFD_HUGETLB
            fd = os.memfd_create(f"guest-ram-{base_gpa:#x}", flags)
            os.ftruncate(fd, size_bytes)
            buffer = mmap.mmap(fd, size_bytes, flags=mmap.MAP_SHARED)
        else:
            room_bytes = size_bytes + (_HUGE_PAGE_BYTES if host_address is not None else 0)
            buffer = mmap.mmap(-1, room_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if host_address is not None:
                offset = -host_address(buffer) % _HUGE_PAGE_BYTES
    except BaseException:
        if fd is not None:
            os.close(fd)
        raise
    if huge_pages is HugePages.TRANSPARENT:
        try:
            buffer.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a host built without them: only slower
    return GuestRegion(base_gpa, size_bytes, buffer, fd, offset)
