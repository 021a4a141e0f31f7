"""Model-specific registers that a kernel expects firmware to have set.

Numbers and bits: SDM 4 table 2-2.
"""

from __future__ import annotations

IA32_MISC_ENABLE = 0x1A0
IA32_MTRR_DEF_TYPE = 0x2FF

FAST_STRINGS_ENABLE = 1 << 0
MTRR_ENABLE = 1 << 11
MEMORY_TYPE_WRITE_BACK = 6

BOOT_MSRS = {
    # Without fast strings Linux drops REP MOVSB/STOSB on processors that have them.
    IA32_MISC_ENABLE: FAST_STRINGS_ENABLE,
    # Without a default type of write-back all of RAM counts as uncached.
    IA32_MTRR_DEF_TYPE: MTRR_ENABLE | MEMORY_TYPE_WRITE_BACK,
}
