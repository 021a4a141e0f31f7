"""A device tree: its header. No kernel, but what arm64's and riscv64's are handed.

Specification: Devicetree Specification 0.4, 5.2 (Header). All of it is big-endian.
"""

from __future__ import annotations

from collections.abc import Iterator

from pyvmm.explain.fields import FieldSpec, decimal, read_fields, size
from pyvmm.explain.model import Section

_MAGIC = b"\xd0\x0d\xfe\xed"

_HEADER = (
    FieldSpec("magic", 4, "the magic number: d0 0d fe ed"),
    FieldSpec("totalsize", 4, "the size of all of it", size),
    FieldSpec("off_dt_struct", 4, "where the structure block begins"),
    FieldSpec("off_dt_strings", 4, "where the strings block begins"),
    FieldSpec("off_mem_rsvmap", 4, "where the memory reservation block begins"),
    FieldSpec("version", 4, "the version of the format", decimal),
    FieldSpec("last_comp_version", 4, "the lowest version that it can be read as", decimal),
    FieldSpec("boot_cpuid_phys", 4, "the processor that boots", decimal),
    FieldSpec("size_dt_strings", 4, "the size of the strings block", size),
    FieldSpec("size_dt_struct", 4, "the size of the structure block", size),
)


def describe(data: memoryview) -> Iterator[Section]:
    """The section about the header of ``data``; none if it is no device tree."""
    if data[: len(_MAGIC)] != _MAGIC:
        return
    yield Section(
        "fdt_header",
        "Device tree header",
        "Devicetree Specification 0.4, 5.2",
        "A description of a machine's hardware, in the flattened form; dtc writes it as text.",
        read_fields(data, 0, _HEADER, big_endian=True),
    )
