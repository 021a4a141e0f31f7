"""PCI configuration space with nothing in it.

Spec: PCI Local Bus Specification 3.0, 3.2.2.3.2 (configuration mechanism #1) and 6.1 (a read
from a device that is not there gives all ones).

CONFIG_ADDRESS at 0xcf8 takes and gives back 32-bit accesses only, by which a kernel finds that the
mechanism is there. CONFIG_DATA at 0xcfc has nothing behind it, whatever the address.
"""

from __future__ import annotations

CONFIG_ADDRESS_OFFSET = 0
# Enable, bus, device, function, register: bits 30..24 and 1..0 are reserved and read as zero.
CONFIG_ADDRESS_BITS = 0x80FF_FFFC


class PciNone:
    """CONFIG_ADDRESS at offset 0, CONFIG_DATA at offset 4."""

    access_bytes = 4

    def __init__(self) -> None:
        self._config_address = 0

    def read(self, offset: int, size: int) -> int:
        """CONFIG_ADDRESS as it was written; all ones from elsewhere."""
        if offset == CONFIG_ADDRESS_OFFSET and size == 4:
            return self._config_address
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Set CONFIG_ADDRESS; anything else goes nowhere."""
        if offset == CONFIG_ADDRESS_OFFSET and size == 4:
            self._config_address = value & CONFIG_ADDRESS_BITS
