"""Boot protocols: what a kernel expects in memory and in registers when it is entered.

``plan_boot`` picks the protocol and lets its module make the plan:

    pvh         a kernel with a PVH note: no real-mode leftovers, the shortest way in
    multiboot   a kernel with a Multiboot header: hypervisors, microkernels, teaching kernels
    linux64     any 64-bit Linux: vmlinux, or a bzImage with XLF_KERNEL_64
    linux32     a bzImage that decompresses itself

``auto`` takes the first of these that the image has.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from pyvmm.errors import KernelImageError
from pyvmm.loader.image import ImageFormat

if TYPE_CHECKING:
    from pyvmm.boot.handover import BootPlan, Handover
    from pyvmm.loader.load import LoadedKernel


class Protocol(enum.Enum):
    """How the kernel is entered."""

    AUTO = "auto"
    PVH = "pvh"
    MULTIBOOT = "multiboot"
    LINUX64 = "linux64"
    LINUX32 = "linux32"


PROTOCOLS_WITH_MODULES = (Protocol.PVH, Protocol.MULTIBOOT)


def entries_of(kernel: LoadedKernel) -> dict[Protocol, int | None]:
    """Each protocol's entry address, None if there is none, in the order that auto goes by."""
    return {
        Protocol.PVH: kernel.pvh_entry_gpa,
        Protocol.MULTIBOOT: kernel.multiboot_entry_gpa,
        Protocol.LINUX64: kernel.linux64_entry_gpa,
        Protocol.LINUX32: kernel.linux32_entry_gpa,
    }


def choose(requested: Protocol, kernel: LoadedKernel) -> tuple[Protocol, int]:
    """The protocol to use and its entry address.

    Raises KernelImageError if the image has no such entry, naming those that it has.
    """
    entries = entries_of(kernel)
    wanted = list(entries) if requested is Protocol.AUTO else [requested]
    for protocol in wanted:
        entry_gpa = entries[protocol]
        if entry_gpa is not None:
            return protocol, entry_gpa
    offered = ", ".join(protocol.value for protocol, gpa in entries.items() if gpa is not None)
    raise KernelImageError(
        f"cannot be entered by {requested.value}: {why_not(requested, kernel)}; "
        f"it offers {offered or 'no entry at all'}",
        "protocol-entry",
    )


def why_not(protocol: Protocol, kernel: LoadedKernel) -> str:
    """Why ``kernel``, which has no such entry, has none; of AUTO, why it has none at all."""
    if kernel.format is ImageFormat.MULTIBOOT:
        return "it is placed by the addresses in its Multiboot header, which name no other entry"
    if protocol is Protocol.PVH:
        if kernel.move is not None:
            return "PVH has no way to tell a kernel that it was moved (--kaslr)"
        if kernel.pvh_problem:
            return f"its PVH note cannot be used ({kernel.pvh_problem})"
        if kernel.linux32_entry_gpa is not None:
            return "a bzImage that decompresses itself has no PVH entry (use --decompress host)"
        return "it has no PVH note (CONFIG_PVH)"
    if protocol is Protocol.LINUX32:
        return "only a bzImage that decompresses itself has that entry (use --decompress guest)"
    if protocol is Protocol.MULTIBOOT:
        return "it has no Multiboot header in its first 8 KiB"
    if protocol is Protocol.LINUX64:
        return "it is not a 64-bit kernel"
    return (
        "it is a 32-bit ELF file without a PVH note or a Multiboot header (a 32-bit Linux boots "
        "from its bzImage, with --protocol linux32)"
    )


def plan_boot(protocol: Protocol, entry_gpa: int, handover: Handover) -> BootPlan:
    """The plan for entering at ``entry_gpa`` by ``protocol``, as ``choose`` gave them."""
    # Each boot uses one protocol; the other modules need not be imported.
    if protocol is Protocol.PVH:
        from pyvmm.boot import pvh

        return pvh.plan(handover, entry_gpa)
    if protocol is Protocol.MULTIBOOT:
        from pyvmm.boot import multiboot

        return multiboot.plan(handover, entry_gpa)
    if protocol is Protocol.LINUX64:
        from pyvmm.boot import linux64

        return linux64.plan(handover, entry_gpa)
    from pyvmm.boot import linux32

    return linux32.plan(handover, entry_gpa)
