"""A flattened devicetree made to order (Devicetree Specification 0.4, chapter 5)."""

from __future__ import annotations

import struct

FIELDS = (
    "magic", "totalsize", "off_dt_struct", "off_dt_strings", "off_mem_rsvmap", "version",
    "last_comp_version", "boot_cpuid_phys", "size_dt_strings", "size_dt_struct",
)  # fmt: skip


def flat_tree(**fields: int) -> bytes:
    """An empty root node, flattened (Devicetree Specification 0.4, 5.1); ``fields`` override."""
    values = dict.fromkeys(FIELDS, 0)
    values |= {"magic": 0xD00DFEED, "totalsize": 72, "off_mem_rsvmap": 40, "off_dt_struct": 56}
    values |= {"off_dt_strings": 72, "size_dt_struct": 16, "version": 17, "last_comp_version": 16}
    values |= fields
    # FDT_BEGIN_NODE, its name "", FDT_END_NODE, FDT_END.
    body = bytes(16) + struct.pack(">4I", 1, 0, 2, 9)
    return struct.pack(">10I", *values.values()) + body
