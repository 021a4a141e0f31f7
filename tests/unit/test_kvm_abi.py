"""The ABI as cffi has it against the C compiler's, and our descriptions of it against cffi's."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from builders.c_compiler import evaluate
from hypothesis import given
from hypothesis import strategies as st

import kvm_bindings
from kvm_bindings import Cap, ExitReason, as_dict, constants, exit_reason_name, new, structs, view
from kvm_bindings._abi import ffi

HEADERS = ["linux/kvm.h"]
KERNEL_STRUCTS = sorted(
    name
    for name in ffi.list_types()[1]
    if name not in ("kvm_coalesced_run", "kvm_memory_fault_exit")  # ours: see _helpers.h
)


def members(struct: Any, path: str, start: int) -> Iterator[tuple[str, int, int]]:
    """Every member, also those of structs and arrays inside: C path, offset, size (0: unsized)."""
    for name, field in struct.fields or ():
        if field.bitsize >= 0:
            continue  # C has no offsetof of a bit field
        where = f"{path}{name}"
        offset = start + field.offset
        flexible = field.type.kind == "array" and field.type.length is None
        yield where, offset, 0 if flexible else ffi.sizeof(field.type)
        inner = field.type
        while inner.kind == "array" and not flexible:
            inner, where = inner.item, f"{where}[0]"
        if inner.kind in ("struct", "union"):
            yield from members(inner, f"{where}.", offset)


def test_kernel_structs_are_all_there() -> None:
    assert len(KERNEL_STRUCTS) > 50
    assert {"kvm_run", "kvm_regs", "kvm_irqchip", "kvm_coalesced_mmio_ring"} <= set(KERNEL_STRUCTS)


def test_every_struct_and_member_is_where_the_compiler_puts_it() -> None:
    ours: dict[str, int] = {}
    for name in KERNEL_STRUCTS:
        struct = f"struct {name}"
        ours[f"sizeof({struct})"] = ffi.sizeof(struct)
        ours[f"_Alignof({struct})"] = ffi.alignof(struct)
        for path, offset, size in members(ffi.typeof(struct), "", 0):
            ours[f"offsetof({struct}, {path})"] = offset
            if size:
                ours[f"sizeof((({struct} *)0)->{path})"] = size
    theirs = dict(zip(ours, evaluate(HEADERS, list(ours)), strict=True))
    assert {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]} == {}


def test_bit_fields_are_where_the_82093aa_has_them() -> None:
    entry = new("kvm_ioapic_state").redirtbl[0]
    # 82093AA datasheet, 3.2.4: vector 7:0, delivery 10:8, destination mode 11, status 12,
    # polarity 13, remote IRR 14, trigger 15, mask 16, destination 63:56.
    positions = {
        "vector": (0, 0xFF),
        "delivery_mode": (8, 7),
        "dest_mode": (11, 1),
        "delivery_status": (12, 1),
        "polarity": (13, 1),
        "remote_irr": (14, 1),
        "trig_mode": (15, 1),
        "mask": (16, 1),
        "dest_id": (56, 0xFF),
    }
    for field, (shift, mask) in positions.items():
        entry.bits = mask << shift
        values = as_dict(entry.fields)
        assert {name: value for name, value in values.items() if _truthy(value)} == {field: mask}


def _truthy(value: object) -> bool:
    return any(value) if isinstance(value, list) else bool(value)


def test_every_constant_is_the_headers() -> None:
    header = evaluate(
        HEADERS,
        [
            "KVM_RUN",
            "KVM_GET_SUPPORTED_CPUID",
            "KVM_SET_USER_MEMORY_REGION",
            "KVM_EXIT_MMIO",
            "KVM_CAP_COALESCED_PIO",
            "KVM_MEM_LOG_DIRTY_PAGES",
        ],
    )
    assert header == [
        constants.KVM_RUN,
        constants.KVM_GET_SUPPORTED_CPUID,
        constants.KVM_SET_USER_MEMORY_REGION,
        constants.KVM_EXIT_MMIO,
        constants.KVM_CAP_COALESCED_PIO,
        constants.KVM_MEM_LOG_DIRTY_PAGES,
    ]


def test_constants_refuse_an_unknown_name() -> None:
    for name in ("KVM_NO_SUCH_THING", "getpid", "kvm_open"):
        with pytest.raises(AttributeError):
            getattr(constants, name)
    assert "KVM_RUN" in dir(constants)
    assert "kvm_open" not in dir(constants)


def test_every_ioctl_and_exit_of_x86_in_the_header_is_known() -> None:
    """What the installed header has and we have not is left out on purpose, listed here."""
    header = Path("/usr/include/linux/kvm.h").read_text()
    defined = re.findall(r"^#define\s+KVM_EXIT_(\w+)\s+\d+", header, re.MULTILINE)
    foreign = re.compile(
        "S390|DCR|OSI|PAPR|WATCHDOG|EPR|ARM|RISCV|LOONGARCH|TDX"  # other machines
        "|^IO_|^HYPERV_|^XEN_"  # not exits: values within one
    )
    ours = {name for name in vars(ExitReason) if name.isupper()}
    assert {name for name in defined if not foreign.search(name)} - ours == set()


def test_exit_reasons_have_the_kernels_names() -> None:
    assert exit_reason_name(2) == "KVM_EXIT_IO"
    assert exit_reason_name(37) == "KVM_EXIT_NOTIFY"
    assert exit_reason_name(999) == "KVM_EXIT_999"


def test_caps_have_the_kernels_numbers() -> None:
    names = [cap.name for cap in Cap]
    from_6_2_on = 224
    old = [name for name in names if Cap[name] < from_6_2_on]
    assert evaluate(HEADERS, [f"KVM_CAP_{name}" for name in old]) == [Cap[name] for name in old]
    assert len(set(names)) == len(list(Cap.__members__)), "two names for one number"


STRUCT_CLASSES = {
    name: cls for name, cls in vars(structs).items() if inspect.isclass(cls) and "kvm_" in name
}


@pytest.mark.parametrize("name", sorted(set(STRUCT_CLASSES) & set(KERNEL_STRUCTS)))
def test_description_has_the_fields_of_the_struct(name: str) -> None:
    described = describe(STRUCT_CLASSES[name])
    real = real_fields(ffi.typeof(f"struct {name}"))
    assert set(described) <= set(real)
    left_out = {path for path in real if path not in described}
    assert {
        path for path in left_out if not re.search(r"pad|reserve|dummy|hv_sint|_u\b", path)
    } == set()


def describe(cls: type) -> dict[str, str]:
    """The leaves of a description: path to kind."""
    result: dict[str, str] = {}
    for field, hint in get_type_hints(cls).items():
        if inspect.isclass(hint) and hint.__module__ == structs.__name__:
            inner = describe(hint)
            result |= {f"{field}.{path}": kind for path, kind in inner.items()}
        else:
            result[field] = "int" if hint is int else "array"
    return result


def real_fields(struct: Any) -> dict[str, str]:
    """The leaves of a struct, likewise."""
    result: dict[str, str] = {}
    for field, described in struct.fields:
        kind = described.type.kind
        if kind in ("struct", "union"):
            inner = real_fields(described.type)
            result |= {f"{field}.{path}": leaf for path, leaf in inner.items()}
        else:
            result[field] = "array" if kind == "array" else "int"
    return result


def test_as_dict_goes_into_structs_and_arrays() -> None:
    sregs = new("kvm_sregs")
    sregs.cs.selector, sregs.gdt.limit, sregs.interrupt_bitmap[3] = 8, 0x27, 1 << 63
    plain = as_dict(sregs)
    assert plain["cs"]["selector"] == 8
    assert plain["gdt"] == {"base": 0, "limit": 0x27, "padding": [0, 0, 0]}
    assert plain["interrupt_bitmap"] == [0, 0, 0, 1 << 63]
    assert as_dict(sregs.cs) == plain["cs"]


def test_as_dict_gives_text_fields_as_bytes_and_pointers_as_numbers() -> None:
    assert as_dict(new("kvm_lapic_state")) == {"regs": bytes(0x400)}
    assert as_dict(new("kvm_dirty_log"))["dirty_bitmap"] == 0


@given(st.integers(0, 2**64 - 1))
def test_view_is_the_struct_itself(value: int) -> None:
    regs = new("kvm_regs")
    view(regs)[0:8] = value.to_bytes(8, "little")
    assert regs.rax == value


def test_host_address_is_where_the_buffer_lies() -> None:
    buffer = bytearray(b"here")
    address = kvm_bindings.host_address(buffer)
    assert ffi.buffer(ffi.cast("char *", address), 4)[:] == b"here"
    buffer.append(0)  # not exported any more


def test_package_has_every_name_that_it_announces() -> None:
    for name in kvm_bindings.__all__:
        assert getattr(kvm_bindings, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        _ = kvm_bindings.Missing  # type: ignore[attr-defined]
