"""XSAVE areas in the standard format, made and read: SDM 1 13.4 and 10.5.1."""

from __future__ import annotations

from builders.fake_vcpu import XSAVE_BYTES
from builders.host_cpu import HostCpu
from hypothesis import strategies as st

_SAMPLE_BYTES = 64


def fill(sample: bytes, size_bytes: int) -> bytes:
    """``size_bytes`` that differ from 64 to 64, from a few that hypothesis chose."""
    blocks = -(-size_bytes // _SAMPLE_BYTES)
    sample = sample.ljust(_SAMPLE_BYTES, b"\0")
    parts = [bytes(byte ^ (block & 0xFF) for byte in sample) for block in range(blocks)]
    return b"".join(parts)[:size_bytes]


samples = st.one_of(
    st.binary(min_size=_SAMPLE_BYTES, max_size=_SAMPLE_BYTES),
    st.sampled_from([bytes(64), b"\xff" * 64, bytes(range(64))]),
)


def xsave_area(host: HostCpu, sample: bytes, in_use: int) -> bytes:
    """An area as XSAVE would have stored it, with the components ``in_use``."""
    area = bytearray(XSAVE_BYTES)
    area[0:2] = (0x37F).to_bytes(2, "little")
    area[24:28] = (0x1F80).to_bytes(4, "little")
    area[28:32] = (0x2FFFF).to_bytes(4, "little")
    if in_use & 1:
        area[2:4] = ((sample[0] & 7) << 11).to_bytes(2, "little")
        area[4] = sample[1]
        for number in range(8):
            at = 32 + 16 * number
            area[at : at + 10] = sample[number : number + 7] + b"\x80\x01\x40"  # normal numbers
    if in_use & 2:
        area[160:416] = fill(sample, 256)
    for number, (offset, size_bytes, _) in host.components.items():
        if in_use >> number & 1:
            area[offset : offset + size_bytes] = fill(sample[number:], size_bytes)
    area[512:520] = (in_use & host.xcr0).to_bytes(8, "little")
    return bytes(area)


def effective(host: HostCpu, area: bytes) -> dict[str, bytes]:
    """The state that an XSAVE area stands for: initial where XSTATE_BV says so.

    Without FOP, FIP and FDP, which pyvmm does not keep up to date.
    """
    in_use = int.from_bytes(area[512:520], "little")
    x87 = area[0:5] + b"".join(area[32 + 16 * n : 42 + 16 * n] for n in range(8))
    parts = {
        "x87": x87 if in_use & 1 else b"\x7f\x03\0\0\0".ljust(len(x87), b"\0"),
        "mxcsr": area[24:28],
        "xmm": area[160:416] if in_use & 2 else bytes(256),
    }
    for number, (offset, size_bytes, _) in host.components.items():
        part = area[offset : offset + size_bytes]
        parts[f"component {number}"] = part if in_use >> number & 1 else bytes(size_bytes)
    return parts
