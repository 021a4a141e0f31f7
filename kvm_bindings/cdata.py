"""What can be done with any of the kernel's structs: make, look into, take the bytes of one.

kvm_bindings hands out the structs themselves, as cffi objects whose attributes are the kernel's
field names (``vcpu.get_regs().rip``). ``kvm_bindings.structs`` describes them for readers and
type checkers.
"""

from __future__ import annotations

from kvm_bindings._abi import ffi

TYPE_CHECKING = False  # typing costs 9 ms to import
if TYPE_CHECKING:
    from typing import Any

_CDATA = type(ffi.NULL)


def new(name: str) -> Any:
    """A zeroed struct by the kernel's name: ``new("kvm_regs")``."""
    return ffi.new(f"struct {name} *")


def view(struct: Any) -> memoryview:
    """The bytes of ``struct``: writable, not a copy, valid as long as they are referenced."""
    return memoryview(ffi.buffer(struct))


def as_dict(struct: Any) -> dict[str, Any]:
    """The fields of ``struct`` by name, structs inside it as dicts, arrays as lists.

    Of a union every member is there, each as its own reading of the same bytes.
    """
    described = ffi.typeof(struct)
    if described.kind == "pointer":
        described = described.item
    return {name: _plain(getattr(struct, name)) for name, _ in described.fields}


def host_address(buffer: object) -> int:
    """Where in this process's memory ``buffer`` (an mmap, bytearray, memoryview, ...) lies.

    Valid for as long as the buffer is neither closed nor resized.
    """
    exported = ffi.from_buffer("char[]", buffer)
    address = int(ffi.cast("uintptr_t", exported))
    ffi.release(exported)
    return address


def _plain(value: Any) -> Any:
    if not isinstance(value, _CDATA):
        return value
    kind = ffi.typeof(value)
    if kind.kind in ("struct", "union"):
        return as_dict(value)
    if kind.kind == "array":
        if kind.item.kind == "primitive" and kind.item.cname == "char":
            return bytes(ffi.buffer(value))
        return [_plain(item) for item in value]
    return int(ffi.cast("uintptr_t", value))  # a pointer
