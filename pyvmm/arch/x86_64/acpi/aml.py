"""An encoder of AML, the byte code in which ACPI describes devices.

Specification: ACPI 6.5, chapter 20 (AML grammar) and 6.4 (resource descriptors). Each function
is a production of the grammar and returns its bytes; a term is made out of terms:

    scope("_SB", device("COM1", name("_HID", eisa_id("PNP0501")), name("_UID", integer(1))))

What is here is what the DSDT of a small machine needs. Left out: expressions and control flow,
references to locals, packages of more than 255 elements. Integers are those of a table of revision
2 or later, 64 bits wide.

What cannot be said in AML raises ValueError; a number that does not fit into a resource descriptor,
struct.error. The caller is at fault then, never the user.
"""

from __future__ import annotations

import struct

# 20.2.1 to 20.2.5, in the order of their use below.
_DUAL_NAME_PREFIX = b"\x2e"
_MULTI_NAME_PREFIX = b"\x2f"
_NULL_NAME = b"\x00"
_ZERO_OP = b"\x00"
_ONE_OP = b"\x01"
_ONES_OP = b"\xff"
_BYTE_PREFIX = b"\x0a"
_WORD_PREFIX = b"\x0b"
_DWORD_PREFIX = b"\x0c"
_QWORD_PREFIX = b"\x0e"
_STRING_PREFIX = b"\x0d"
_BUFFER_OP = b"\x11"
_PACKAGE_OP = b"\x12"
_NAME_OP = b"\x08"
_SCOPE_OP = b"\x10"
_DEVICE_OP = b"\x5b\x82"
_METHOD_OP = b"\x14"
_OP_REGION_OP = b"\x5b\x80"
_FIELD_OP = b"\x5b\x81"
_ARG0_OP = 0x68
_ARGS_MAX = 7
_STORE_OP = b"\x70"
_RETURN_OP = b"\xa4"

_METHOD_SERIALIZED = 1 << 3  # 20.2.5.2, MethodFlags
_REGION_SYSTEM_IO = b"\x01"  # RegionSpace
_FIELD_BYTE_ACCESS = b"\x01"  # FieldFlags: ByteAcc, NoLock, Preserve

_CAPITALS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_HEX_DIGITS = frozenset("0123456789ABCDEF")
_NAME_LEAD = _CAPITALS | {"_"}
_NAME_CHARS = _NAME_LEAD | _HEX_DIGITS

# 6.4.2 and 6.4.3: the tags of the resource descriptors, a small one's with its length in it.
_IRQ_NO_FLAGS = 0x22
_IO_PORT = 0x47
_END_TAG = 0x79
_MEMORY32_FIXED = 0x86
_EXTENDED_INTERRUPT = 0x89


# Names (20.2.2).


def name_seg(name: str) -> bytes:
    """One segment of a name: 1 to 4 of A-Z, 0-9 and _, no digit first; padded with _."""
    if not 1 <= len(name) <= 4 or name[0] not in _NAME_LEAD or not _NAME_CHARS.issuperset(name):
        raise ValueError(
            f"{name!r} is no name segment; expected 1 to 4 of A-Z, 0-9 and _, not a digit first"
        )
    return name.ljust(4, "_").encode("ascii")


def name_string(path: str) -> bytes:
    r"""A path to an object: ``COM1``, ``\_SB.COM1``, ``^^PEPT``, or ``\`` alone."""
    segments = path.lstrip("\\^")
    prefix = path[: len(path) - len(segments)]
    if "\\" in prefix and prefix != "\\":
        raise ValueError(f"{path!r} is no name; expected one \\ in front, or any number of ^")
    segs = [name_seg(segment) for segment in segments.split(".")] if segments else []
    if not segs:
        encoded = _NULL_NAME
    elif len(segs) == 1:
        encoded = segs[0]
    elif len(segs) == 2:
        encoded = _DUAL_NAME_PREFIX + segs[0] + segs[1]
    elif len(segs) <= 0xFF:
        encoded = _MULTI_NAME_PREFIX + bytes((len(segs),)) + b"".join(segs)
    else:
        raise ValueError(f"a name of {len(segs)} segments; expected at most 255")
    return prefix.encode("ascii") + encoded


# Data (20.2.3).


def integer(value: int) -> bytes:
    """A constant, in the shortest of its encodings."""
    if value == 0:
        return _ZERO_OP
    if value == 1:
        return _ONE_OP
    if value == (1 << 64) - 1:
        return _ONES_OP
    for prefix, size in (
        (_BYTE_PREFIX, 1), (_WORD_PREFIX, 2), (_DWORD_PREFIX, 4), (_QWORD_PREFIX, 8),
    ):  # fmt: skip
        if 0 <= value < 1 << 8 * size:
            return prefix + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} is no integer of AML; expected 64 bits without a sign")


def string(text: str) -> bytes:
    """A string of ASCII characters other than NUL."""
    if not text.isascii() or "\0" in text:
        raise ValueError(f"{text!r} is no string of AML; expected ASCII characters without NUL")
    return _STRING_PREFIX + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """A plug-and-play id, ``PNP0501``, as the integer that ``_HID`` wants (6.1.5).

    Three letters of five bits each, then four hexadecimal digits; its first byte is the highest
    of the text, but the lowest of the integer.
    """
    vendor, product = text[:3], text[3:]
    if len(text) != 7 or not _CAPITALS.issuperset(vendor) or not _HEX_DIGITS.issuperset(product):
        raise ValueError(f"{text!r} is no EISA id; expected 3 of A-Z and 4 of 0-9 and A-F")
    compressed = 0
    for letter in vendor:
        compressed = compressed << 5 | ord(letter) - ord("A") + 1
    compressed = compressed << 16 | int(product, 16)
    return integer(int.from_bytes(compressed.to_bytes(4, "big"), "little"))


def buffer(data: bytes) -> bytes:
    """A buffer that holds ``data``."""
    return _BUFFER_OP + _sized(integer(len(data)) + data)


def package(*elements: bytes) -> bytes:
    """A package of data objects."""
    if len(elements) > 0xFF:
        raise ValueError(f"a package of {len(elements)} elements; expected at most 255")
    return _PACKAGE_OP + _sized(bytes((len(elements),)) + b"".join(elements))


# Lengths (20.2.4).


def pkg_length(length: int) -> bytes:
    """A PkgLength that says ``length``.

    One byte has six bits of it. With one to three bytes more, the first has the lowest four bits,
    the others eight each, and the first one's top two bits tell how many others there are.
    """
    if not 0 <= length < 1 << 28:
        raise ValueError(f"a length of {length:#x}; expected at most 28 bits")
    if length < 1 << 6:
        return bytes((length,))
    more = 1 if length < 1 << 12 else 2 if length < 1 << 20 else 3
    return bytes((more << 6 | length & 0xF,)) + (length >> 4).to_bytes(more, "little")


def _sized(body: bytes) -> bytes:
    """``body`` behind its PkgLength, which counts its own bytes as well."""
    for own_bytes in (1, 2, 3):
        encoded = pkg_length(own_bytes + len(body))
        if len(encoded) == own_bytes:
            return encoded + body
    return pkg_length(4 + len(body)) + body


# Namespace and objects (20.2.5.1, 20.2.5.2).


def name(path: str, value: bytes) -> bytes:
    """An object that has the value of a data object."""
    return _NAME_OP + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """Terms within an object that there is already."""
    return _SCOPE_OP + _sized(name_string(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """A device, and what is within it."""
    return _DEVICE_OP + _sized(name_string(path) + b"".join(terms))


def method(path: str, arg_count: int, *terms: bytes, serialized: bool = False) -> bytes:
    """A method of ``arg_count`` arguments. One that makes objects must be ``serialized``."""
    if not 0 <= arg_count <= _ARGS_MAX:
        raise ValueError(f"a method of {arg_count} arguments; expected 0 to {_ARGS_MAX}")
    flags = arg_count | (_METHOD_SERIALIZED if serialized else 0)
    return _METHOD_OP + _sized(name_string(path) + bytes((flags,)) + b"".join(terms))


def io_region(path: str, base_port: int, size: int) -> bytes:
    """An operation region of ``size`` I/O ports."""
    return (
        _OP_REGION_OP + name_string(path) + _REGION_SYSTEM_IO + integer(base_port) + integer(size)
    )


def byte_field(region: str, *units: tuple[str, int]) -> bytes:
    """Names for parts of a region, from its start on: (name, bits) each, accessed by bytes."""
    field_list = b"".join(name_seg(unit) + pkg_length(bits) for unit, bits in units)
    return _FIELD_OP + _sized(name_string(region) + _FIELD_BYTE_ACCESS + field_list)


# Statements and expressions (20.2.5.3, 20.2.5.4, 20.2.6.1).


def arg(index: int) -> bytes:
    """An argument of the method that this stands in."""
    if not 0 <= index < _ARGS_MAX:
        raise ValueError(f"argument {index} of a method; expected 0 to {_ARGS_MAX - 1}")
    return bytes((_ARG0_OP + index,))


def store(value: bytes, target: bytes) -> bytes:
    """Store ``value`` to ``target``: a name_string, or an arg."""
    return _STORE_OP + value + target


def return_(value: bytes) -> bytes:
    """Leave the method with ``value``."""
    return _RETURN_OP + value


# Resources (6.4): what a device's _CRS holds.


def resource_template(*descriptors: bytes) -> bytes:
    """A buffer of resource descriptors and the end tag (6.4.2.9).

    The end tag's checksum is 0, which says that there is none: as ASL compilers have it.
    """
    return buffer(b"".join(descriptors) + bytes((_END_TAG, 0)))


def io_port(base: int, size: int, *, alignment: int = 1) -> bytes:
    """``size`` ports at ``base`` and nowhere else, all 16 address bits decoded (6.4.2.5)."""
    return struct.pack("<BBHHBB", _IO_PORT, 1, base, base, alignment, size)


def irq_no_flags(irq: int) -> bytes:
    """One of the 16 ISA interrupts, as ISA has them: edge, active high, not shared (6.4.2.1)."""
    return struct.pack("<BH", _IRQ_NO_FLAGS, 1 << irq)


def interrupt(gsi: int, *, edge: bool, active_low: bool = False, shared: bool = False) -> bytes:
    """One global system interrupt that the device uses (6.4.3.6)."""
    consumer = 1 << 0
    flags = consumer | edge << 1 | active_low << 2 | shared << 3
    return struct.pack("<BHBBI", _EXTENDED_INTERRUPT, 6, flags, 1, gsi)


def memory32_fixed(base: int, size: int, *, writable: bool = True) -> bytes:
    """``size`` bytes at ``base``, below 4 GiB (6.4.3.4)."""
    return struct.pack("<BHBII", _MEMORY32_FIXED, 9, writable, base, size)
