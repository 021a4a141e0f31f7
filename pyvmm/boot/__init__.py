"""Boot protocols: what a kernel expects in memory and in registers when it is entered.

``plan_boot`` picks the protocol and lets its module make the plan:

    pvh       a vmlinux with a PVH note: no real-mode leftovers, the shortest way in
    linux64   any 64-bit Linux: vmlinux, or a bzImage with XLF_KERNEL_64
    linux32   a bzImage that decompresses itself

``auto`` takes PVH where the image has it, else the 64-bit protocol, else the 32-bit one.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from pyvmm.errors import KernelImageError

if TYPE_CHECKING:
    from pyvmm.boot.handover import BootPlan, Handover
    from pyvmm.loader.load import LoadedKernel


class Protocol(enum.Enum):
    """How the kernel is entered."""

    AUTO = "auto"
    PVH = "pvh"
    LINUX64 = "linux64"
    LINUX32 = "linux32"


def choose(requested: Protocol, kernel: LoadedKernel) -> tuple[Protocol, int]:
    """The protocol to use and its entry address.

    Raises KernelImageError if the image has no such entry, naming those that it has.
    """
    entries = {
        Protocol.PVH: kernel.pvh_entry_gpa,
        Protocol.LINUX64: kernel.linux64_entry_gpa,
        Protocol.LINUX32: kernel.linux32_entry_gpa,
    }
    wanted = list(entries) if requested is Protocol.AUTO else [requested]
    for protocol in wanted:
        entry_gpa = entries[protocol]
        if entry_gpa is not None:
            return protocol, entry_gpa
    offered = ", ".join(protocol.value for protocol, gpa in entries.items() if gpa is not None)
    raise KernelImageError(
        f"this kernel cannot be entered by {requested.value}: {_why_not(requested, kernel)}; "
        f"it offers {offered or 'no entry at all'}"
    )


def _why_not(protocol: Protocol, kernel: LoadedKernel) -> str:
    if protocol is Protocol.PVH:
        if kernel.pvh_problem:
            return f"its PVH note is malformed ({kernel.pvh_problem})"
        if kernel.linux32_entry_gpa is not None:
            return "a bzImage that decompresses itself has no PVH entry (use --decompress host)"
        return "it has no PVH note (CONFIG_PVH)"
    if protocol is Protocol.LINUX32:
        return "only a bzImage that decompresses itself has that entry (use --decompress guest)"
    return "it is not a 64-bit kernel"


def plan_boot(protocol: Protocol, entry_gpa: int, handover: Handover) -> BootPlan:
    """The plan for entering at ``entry_gpa`` by ``protocol``, as ``choose`` gave them."""
    # Each boot uses one protocol; the other modules need not be imported.
    if protocol is Protocol.PVH:
        from pyvmm.boot import pvh

        return pvh.plan(handover, entry_gpa)
    if protocol is Protocol.LINUX64:
        from pyvmm.boot import linux64

        return linux64.plan(handover, entry_gpa)
    from pyvmm.boot import linux32

    return linux32.plan(handover, entry_gpa)
