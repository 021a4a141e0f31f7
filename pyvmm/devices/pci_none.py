"""The ports of PCI's configuration space, on a machine without PCI.

Spec: PCI Local Bus Specification 3.0, 3.2.2.3.2 (configuration mechanism #1) and 6.1 (a read
from a device that is not there gives all ones).

A kernel finds out whether there is mechanism #1 by writing CONFIG_ADDRESS, at 0xcf8, and reading it
back. Here it gets all ones, from there as from CONFIG_DATA at 0xcfc, and knows. If the register
kept what is written, Linux would go on to look for a host bridge among the 256 functions of bus 0
(pci_sanity_check in arch/x86/pci/direct.c): 1050 of the 1480 exits of a cloud kernel's boot.

There is a device here at all because kernels read CONFIG_DATA before they ask for the mechanism
(arch/x86/kernel/early-quirks.c, aperture_64.c), on some processors 16,000 times, and the run loop
is quicker with a device than with none.
"""

from __future__ import annotations


class PciNone:
    """CONFIG_ADDRESS and CONFIG_DATA, neither of which is there."""

    access_bytes = 4

    def read(self, offset: int, size: int) -> int:
        """All ones."""
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Take ``value`` nowhere."""
