"""The x87, SSE, AVX and AVX-512 registers, where XSAVE's standard format has them.

       0  legacy region, the form of FXSAVE (SDM 1 10.5.1):
             0 FCW  2 FSW  4 FTW  6 FOP  8 FIP  16 FDP  24 MXCSR  28 MXCSR_MASK
            32 ST0 .. ST7, 16 bytes each   160 XMM0 .. XMM15
     512  XSAVE header (13.4.2): XSTATE_BV, XCOMP_BV, 48 bytes of zeros
     576  extended region: one component each, its offset and size by CPUID leaf 0xd

KVM_GET_XSAVE and KVM_SET_XSAVE have the guest's state in this form, so it is kept so here. A
component whose bit in XSTATE_BV is 0 is in its initial configuration, whatever its bytes are.

A vector register lies in parts: bits 127:0 in the legacy region, 255:128 in component 2, 511:256
in component 6; ZMM16 to ZMM31 as a whole in component 7.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

LEGACY_BYTES = 512
HEADER = 512
EXTENDED = 576  # the header's end

FCW, FSW, FTW, MXCSR, MXCSR_MASK, ST0, XMM0, XMM_END = 0, 2, 4, 24, 28, 32, 160, 416
XSTATE_BV, XCOMP_BV = HEADER, HEADER + 8

# State components, SDM 1 13.1
X87, SSE, AVX, OPMASK, ZMM_HI256, HI16_ZMM, PKRU = 0, 1, 2, 5, 6, 7, 9

FCW_INITIAL = 0x37F  # SDM 1 13.6
MXCSR_INITIAL = 0x1F80
_MXCSR_MASK_DEFAULT = 0xFFBF  # if the processor says 0, SDM 1 11.6.6


class Component(NamedTuple):
    """Where a state component of the extended region lies: CPUID leaf 0xd, its sub-leaf."""

    offset: int
    size_bytes: int
    is_aligned: bool = False
    """In the compacted format it begins at a multiple of 64."""


class XState(NamedTuple):
    """The state, and which of it the guest has enabled."""

    area: bytes
    components: Mapping[int, Component]
    xcr0: int
    xss: int = 0
    """IA32_XSS: state components that only XSAVES and XRSTORS manage."""

    @property
    def in_use(self) -> int:
        """XINUSE: the components that are not in their initial configuration."""
        return int.from_bytes(self.area[XSTATE_BV : XSTATE_BV + 8], "little")

    def number(self, offset: int, size_bytes: int) -> int:
        """The little-endian number at ``offset``."""
        return int.from_bytes(self.area[offset : offset + size_bytes], "little")

    def with_number(self, offset: int, size_bytes: int, value: int, component: int) -> XState:
        """``value`` at ``offset``, which belongs to ``component``."""
        return self.with_parts(component, [(offset, value.to_bytes(size_bytes, "little"))])

    def with_parts(self, component: int, parts: Iterable[tuple[int, bytes]]) -> XState:
        """``parts`` (offset, bytes) of ``component`` replaced; the component is in use then."""
        area = bytearray(self.area)
        if not self.in_use >> component & 1:
            set_initial(area, component, self.components)
        for offset, data in parts:
            area[offset : offset + len(data)] = data
        area[XSTATE_BV : XSTATE_BV + 8] = (self.in_use | 1 << component).to_bytes(8, "little")
        return self._replace(area=bytes(area))

    @property
    def mxcsr_mask(self) -> int:
        """The bits of MXCSR that may be set."""
        return self.number(MXCSR_MASK, 4) or _MXCSR_MASK_DEFAULT


def set_initial(area: bytearray, component: int, components: Mapping[int, Component]) -> None:
    """Give ``component`` the bytes of its initial configuration (SDM 1 13.6); not MXCSR."""
    if component == X87:
        area[0:MXCSR] = FCW_INITIAL.to_bytes(2, "little") + bytes(MXCSR - 2)
        area[ST0:XMM0] = bytes(XMM0 - ST0)
    elif component == SSE:
        area[XMM0:XMM_END] = bytes(XMM_END - XMM0)
    else:
        offset, size_bytes, _ = components[component]
        area[offset : offset + size_bytes] = bytes(size_bytes)


def _vector_parts(
    number: int, components: Mapping[int, Component]
) -> list[tuple[int, int, int, int]]:
    """Where vector register ``number`` lies: (component, offset, first byte, size) of each part."""
    if number >= 16:
        if HI16_ZMM not in components:
            return []
        return [(HI16_ZMM, components[HI16_ZMM].offset + 64 * (number - 16), 0, 64)]
    parts = [(SSE, XMM0 + 16 * number, 0, 16)]
    for component, first, size_bytes in ((AVX, 16, 16), (ZMM_HI256, 32, 32)):
        if component in components:
            offset = components[component].offset + size_bytes * number
            parts.append((component, offset, first, size_bytes))
    return parts


def vector(xstate: XState, number: int, size_bytes: int) -> int:
    """The low ``size_bytes`` of vector register ``number``."""
    value = 0
    for component, offset, first, part_bytes in _vector_parts(number, xstate.components):
        if xstate.in_use >> component & 1:
            value |= xstate.number(offset, part_bytes) << 8 * first
    return value & (1 << 8 * size_bytes) - 1


def with_vector(
    xstate: XState, number: int, value: int, size_bytes: int, *, zero_above: bool
) -> XState:
    """Vector register ``number`` with its low ``size_bytes`` replaced, the rest zero or kept."""
    if not zero_above:
        kept = vector(xstate, number, 64) & -(1 << 8 * size_bytes)
        value |= kept
    data = value.to_bytes(64, "little")
    for component, offset, first, part_bytes in _vector_parts(number, xstate.components):
        part = data[first : first + part_bytes]
        # A part that is zero and whose component is not in use stays so.
        if any(part) or xstate.in_use >> component & 1:
            xstate = xstate.with_parts(component, [(offset, part)])
    return xstate
