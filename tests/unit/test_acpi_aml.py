"""The AML encoder, against iasl's compilation of the same in ASL."""

from __future__ import annotations

import pytest
from builders.iasl import compile_terms, needs_acpica

from pyvmm.arch.x86_64.acpi import aml


@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        # ACPI 6.5, 20.2.2: the prefixes are 0x2e for two segments, 0x2f and a count for more.
        ("A", b"A___"),
        ("_SB", b"_SB_"),
        ("\\", b"\\\0"),
        ("^^AB1", b"^^AB1_"),
        ("\\_SB.COM1", b"\\\x2e_SB_COM1"),
        ("A.B.C", b"\x2f\x03A___B___C___"),
    ],
)
def test_name_string_is_encoded(path: str, encoded: bytes) -> None:
    assert aml.name_string(path) == encoded


@pytest.mark.parametrize("path", ["1AB", "ABCDE", "abc", "A-B", "A..B", "A.", "\\^A", "\\\\A", "Ä"])
def test_name_string_refuses_what_is_no_name(path: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        aml.name_string(path)


def test_name_string_refuses_more_segments_than_can_be_counted() -> None:
    assert aml.name_string(".".join(["A"] * 255))[:2] == b"\x2f\xff"
    with pytest.raises(ValueError, match="256 segments"):
        aml.name_string(".".join(["A"] * 256))


@pytest.mark.parametrize(
    ("length", "encoded"),
    [
        # ACPI 6.5, 20.2.4, at each change of the number of bytes.
        (0, "00"),
        (0x3F, "3f"),
        (0x40, "40 04"),
        (0xFFF, "4f ff"),
        (0x1000, "80 00 01"),
        (0xF_FFFF, "8f ff ff"),
        (0x10_0000, "c0 00 00 01"),
        (0xFFF_FFFF, "cf ff ff ff"),
    ],
)
def test_pkg_length_is_encoded(length: int, encoded: str) -> None:
    assert aml.pkg_length(length) == bytes.fromhex(encoded)


@pytest.mark.parametrize("length", [-1, 1 << 28])
def test_pkg_length_refuses_what_28_bits_cannot_say(length: int) -> None:
    with pytest.raises(ValueError, match="28 bits"):
        aml.pkg_length(length)


# The body of a scope is its name's 4 bytes, NameOp and a name of 4 bytes, the string's prefix and
# its NUL: 11 bytes and the text. PkgLength takes one more byte from a package of 64 bytes on, and
# of 4096; itself it counts as well.
@needs_acpica
@pytest.mark.parametrize("text_bytes", [51, 52, 4082, 4083])
def test_scope_counts_the_length_of_its_length(text_bytes: int) -> None:
    text = "x" * text_bytes
    expected = compile_terms(f'Scope (\\) {{ Name (TEXT, "{text}") }}')
    assert aml.scope("\\", aml.name("TEXT", aml.string(text))) == expected


@needs_acpica
def test_scope_of_a_mebibyte_has_a_length_of_four_bytes() -> None:
    text = "x" * 3600
    names = [f"A{number:03X}" for number in range(300)]
    expected = compile_terms(
        "Scope (\\) {" + "\n".join(f'Name ({name}, "{text}")' for name in names) + "}"
    )
    scope = aml.scope("\\", *(aml.name(name, aml.string(text)) for name in names))
    assert scope[1] >> 6 == 3
    assert scope == expected


@needs_acpica
@pytest.mark.parametrize("size", [1, 58, 59, 60, 255, 256])
def test_buffer_is_encoded_as_iasl_does(size: int) -> None:
    expected = compile_terms("Name (BUFF, Buffer () {" + ",".join(["0xA5"] * size) + "})")
    assert aml.name("BUFF", aml.buffer(b"\xa5" * size)) == expected


@needs_acpica
@pytest.mark.parametrize(
    "value",
    [0, 1, 2, 0xFF, 0x100, 0xFFFF, 0x1_0000, 0xFFFF_FFFF, 1 << 32, (1 << 64) - 2, (1 << 64) - 1],
)
def test_integer_is_encoded_as_iasl_does(value: int) -> None:
    assert aml.name("VALU", aml.integer(value)) == compile_terms(f"Name (VALU, {value:#x})")


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_integer_refuses_what_64_bits_cannot_say(value: int) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        aml.integer(value)


@needs_acpica
@pytest.mark.parametrize("text", ["PNP0501", "PNP0B00", "PNP0000", "ABC1234", "ZZZFFFF"])
def test_eisa_id_is_encoded_as_iasl_does(text: str) -> None:
    assert aml.name("_HID", aml.eisa_id(text)) == compile_terms(f'Name (_HID, EisaId ("{text}"))')


@pytest.mark.parametrize("text", ["PNP050", "PNP05010", "pnp0501", "PN00501", "PNP05g1", "PNP-501"])
def test_eisa_id_refuses_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="expected 3 of A-Z"):
        aml.eisa_id(text)


@pytest.mark.parametrize("text", ["a\0b", "é"])
def test_string_refuses_what_is_not_ascii(text: str) -> None:
    with pytest.raises(ValueError, match="ASCII"):
        aml.string(text)


@needs_acpica
@pytest.mark.parametrize("count", [0, 1, 4, 255])
def test_package_is_encoded_as_iasl_does(count: int) -> None:
    expected = compile_terms(f"Name (PACK, Package () {{ {', '.join(['7'] * count)} }})")
    assert aml.name("PACK", aml.package(*[aml.integer(7)] * count)) == expected


def test_package_refuses_more_elements_than_can_be_counted() -> None:
    with pytest.raises(ValueError, match="256 elements"):
        aml.package(*[aml.integer(0)] * 256)


@needs_acpica
def test_device_within_a_scope_is_encoded_as_iasl_does() -> None:
    expected = compile_terms(r'Scope (\_SB) { Device (DEV1) { Name (_HID, "QEMU0001") } }')
    device = aml.device("DEV1", aml.name("_HID", aml.string("QEMU0001")))
    assert aml.scope("\\_SB", device) == expected


@needs_acpica
@pytest.mark.parametrize("serialized", [False, True])
@pytest.mark.parametrize("arg_count", [0, 1, 7])
def test_method_is_encoded_as_iasl_does(arg_count: int, serialized: bool) -> None:
    rule = "Serialized" if serialized else "NotSerialized"
    expected = compile_terms(f"Method (METH, {arg_count}, {rule}) {{ Return (5) }}")
    method = aml.method("METH", arg_count, aml.return_(aml.integer(5)), serialized=serialized)
    assert method == expected


def test_method_refuses_an_eighth_argument() -> None:
    with pytest.raises(ValueError, match="8 arguments"):
        aml.method("METH", 8)
    with pytest.raises(ValueError, match="argument 7"):
        aml.arg(7)


@needs_acpica
def test_region_and_field_are_encoded_as_iasl_does() -> None:
    expected = compile_terms(
        "OperationRegion (REGN, SystemIO, 0x505, 0x10)"
        "Field (REGN, ByteAcc, NoLock, Preserve) { LOW, 8, WIDE, 0x70 }"
        "Method (PUT, 7) { Store (Arg6, LOW) }"
    )
    region = aml.io_region("REGN", 0x505, 0x10) + aml.byte_field("REGN", ("LOW", 8), ("WIDE", 0x70))
    put = aml.method("PUT", 7, aml.store(aml.arg(6), aml.name_string("LOW")))
    assert region + put == expected


@needs_acpica
@pytest.mark.parametrize(
    ("descriptor", "asl"),
    [
        (aml.io_port(0x3F8, 8), "IO (Decode16, 0x3F8, 0x3F8, 1, 8)"),
        (aml.io_port(0xFFF0, 16, alignment=16), "IO (Decode16, 0xFFF0, 0xFFF0, 16, 16)"),
        (aml.irq_no_flags(0), "IRQNoFlags () {0}"),
        (aml.irq_no_flags(15), "IRQNoFlags () {15}"),
        (
            aml.memory32_fixed(0xD000_0000, 0x1000),
            "Memory32Fixed (ReadWrite, 0xD0000000, 0x1000)",
        ),
        (
            aml.memory32_fixed(0xFED0_0000, 0x400, writable=False),
            "Memory32Fixed (ReadOnly, 0xFED00000, 0x400)",
        ),
        (
            aml.interrupt(16, edge=True),
            "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {16}",
        ),
        (
            aml.interrupt(0x123, edge=False, active_low=True, shared=True),
            "Interrupt (ResourceConsumer, Level, ActiveLow, Shared) {0x123}",
        ),
    ],
)
def test_resource_is_encoded_as_iasl_does(descriptor: bytes, asl: str) -> None:
    expected = compile_terms(f"Name (CRES, ResourceTemplate () {{ {asl} }})")
    assert aml.name("CRES", aml.resource_template(descriptor)) == expected


@needs_acpica
def test_resource_template_holds_several() -> None:
    asl = "IO (Decode16, 0x70, 0x70, 1, 2) IRQNoFlags () {8} " * 20
    expected = compile_terms(f"Name (CRES, ResourceTemplate () {{ {asl} }})")
    descriptors = [aml.io_port(0x70, 2), aml.irq_no_flags(8)] * 20
    assert aml.name("CRES", aml.resource_template(*descriptors)) == expected
