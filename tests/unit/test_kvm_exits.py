"""Decoding run pages: every exit that needs rare hardware or a rare guest, written by hand here."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_bindings import ExitReason, exits, new, view
from kvm_bindings._abi import ffi
from kvm_bindings.exits import VcpuExit, decode_page

# struct kvm_run, include/uapi/linux/kvm.h: exit_reason is at 8, the union at 32.
EXIT_REASON, UNION = 8, 32


def page(reason: int, payload: bytes) -> Any:
    """A run page with ``payload`` at the start of its union."""
    run = new("kvm_run")
    view(run)[EXIT_REASON : EXIT_REASON + 4] = struct.pack("<I", reason)
    view(run)[UNION : UNION + len(payload)] = payload
    return run


CASES: list[tuple[int, bytes, VcpuExit]] = [
    (0, struct.pack("<Q", 0x21), exits.Unknown(0, 0x21)),
    (1, struct.pack("<II", 14, 2), exits.ExceptionExit(14, 2)),
    (
        3,
        struct.pack("<Q6QQI", 12, 1, 2, 3, 4, 5, 6, 0, 1),
        exits.Hypercall(12, (1, 2, 3, 4, 5, 6), True),
    ),
    (4, struct.pack("<IIQQQ", 1, 0, 0x1000, 0x4000, 0x400), exits.Debug(1, 0x1000, 0x4000, 0x400)),
    (5, b"", exits.Hlt()),
    (6, struct.pack("<Q8sIB", 0xF000, b"abcd", 4, 1), exits.MmioWrite(0xF000, b"abcd")),
    (6, struct.pack("<Q8sIB", 0xF000, b"", 2, 0), exits.MmioRead(0xF000, 2)),
    (7, b"", exits.IrqWindowOpen()),
    (8, b"", exits.Shutdown()),
    (9, struct.pack("<QI", 0x8000_0021, 3), exits.FailEntry(0x8000_0021, 3)),
    (10, b"", exits.Intr()),
    (11, b"", exits.SetTpr(0)),
    (12, struct.pack("<QII", 0x1234, 1, 0), exits.TprAccess(0x1234, True)),
    (16, b"", exits.Nmi()),
    (24, struct.pack("<IIQQ", 3, 2, 7, 9), exits.SystemEvent(3, (7, 9))),
    (26, b"\x31", exits.IoapicEoi(0x31)),
    (27, struct.pack("<IIIIQQQ", 1, 0, 2, 0, 3, 4, 5), exits.HypervSynic(2, 3, 4, 5)),
    (27, struct.pack("<IIQQQQ", 2, 0, 3, 0, 4, 5), exits.HypervHcall(3, (4, 5))),
    (
        27,
        struct.pack("<IIIIQQQQQ", 3, 0, 2, 0, 3, 4, 5, 6, 7),
        exits.HypervSyndbg(2, 3, 4, 5, 6, 7),
    ),
    (27, struct.pack("<I", 99), exits.Unknown(27, None)),
    (29, struct.pack("<8xIIQ", 4, 0x174, 0), exits.X86Rdmsr(0x174, 4)),
    (30, struct.pack("<8xIIQ", 2, 0x174, 5), exits.X86Wrmsr(0x174, 5, 2)),
    (31, b"", exits.DirtyRingFull()),
    (32, b"", exits.ApResetHold()),
    (33, b"", exits.X86BusLock()),
    (
        34,
        struct.pack("<I4xIIQQ6Q", 1, 1, 3, 8, 0, 1, 2, 3, 4, 5, 6),
        exits.XenHcall(True, 3, 8, (1, 2, 3, 4, 5, 6)),
    ),
    (34, struct.pack("<I", 99), exits.Unknown(34, None)),
    (37, struct.pack("<I", 1), exits.Notify(1)),
    (39, struct.pack("<QQQ", 8, 0x1000, 0x2000), exits.MemoryFault(8, 0x1000, 0x2000)),
    (99, b"", exits.Unknown(99, None)),
]


@pytest.mark.parametrize(
    ("reason", "payload", "expected"), CASES, ids=[repr(case[2]) for case in CASES]
)
def test_exit_is_decoded(reason: int, payload: bytes, expected: VcpuExit) -> None:
    run = page(reason, payload)
    assert decode_page(run, view(run)) == expected


def test_set_tpr_brings_cr8() -> None:
    run = page(11, b"")
    run.cr8 = 5
    assert decode_page(run, view(run)) == exits.SetTpr(5)


def internal_error(suberror: int, ndata: int, flags: int, insn: bytes, size: int) -> VcpuExit:
    payload = struct.pack("<IIQB15s", suberror, ndata, flags, size, insn)
    run = page(17, payload)
    return decode_page(run, view(run))


INSN = bytes.fromhex("f30fb8c1")  # popcnt %ecx, %eax


def test_emulation_failure_brings_its_instruction_bytes() -> None:
    error = internal_error(1, 3, 1, INSN, 4)
    assert isinstance(error, exits.InternalError)
    assert error.is_emulation_failure
    assert error.insn_bytes == INSN
    assert error.data == (1, *struct.unpack("<QQ", struct.pack("<B15s", 4, INSN)))


@pytest.mark.parametrize(
    ("suberror", "ndata", "flags"), [(1, 3, 0), (1, 0, 1), (3, 3, 1)],
    ids=["flag not set", "no data", "another suberror"],
)  # fmt: skip
def test_internal_error_without_instruction_has_no_bytes(
    suberror: int, ndata: int, flags: int
) -> None:
    error = internal_error(suberror, ndata, flags, INSN, 4)
    assert isinstance(error, exits.InternalError)
    assert error.insn_bytes == b""
    assert len(error.data) == ndata


def test_internal_error_counts_are_bounded_by_their_arrays() -> None:
    error = internal_error(1, 0xFFFF_FFFF, 1, INSN, 255)
    assert isinstance(error, exits.InternalError)
    assert len(error.data) == 16
    assert len(error.insn_bytes) == 15


def test_system_event_count_is_bounded_by_its_array() -> None:
    run = page(24, struct.pack("<II", 1, 0xFFFF_FFFF))
    event = decode_page(run, view(run))
    assert isinstance(event, exits.SystemEvent)
    assert len(event.data) == 16


def test_every_exit_reason_has_a_class_of_its_own() -> None:
    decoded = {}
    for name, reason in vars(ExitReason).items():
        if not name.isupper():
            continue
        run = page(reason, struct.pack("<I", 1) if name in ("HYPERV", "XEN") else b"")
        decoded[name] = type(decode_page(run, view(run)))
    assert len(set(decoded.values())) == len(decoded)
    assert {name for name, cls in decoded.items() if cls is exits.Unknown} == {"UNKNOWN"}


def test_union_lists_every_exit_class() -> None:
    classes = {
        value
        for value in vars(exits).values()
        if dataclasses.is_dataclass(value) and isinstance(value, type)
    }
    assert set(get_args(VcpuExit)) == classes
    assert all(hasattr(cls, "__slots__") for cls in classes)


@given(st.integers(0, 64), st.binary(min_size=256, max_size=256))
def test_no_run_page_fails_to_decode(reason: int, payload: bytes) -> None:
    run = page(reason, payload)
    assert isinstance(decode_page(run, view(run)), get_args(VcpuExit))


def test_offsets_used_here_are_the_structs() -> None:
    assert ffi.offsetof("struct kvm_run", "exit_reason") == EXIT_REASON
    assert ffi.offsetof("struct kvm_run", "padding") == UNION
