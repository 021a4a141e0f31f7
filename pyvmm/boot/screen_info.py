"""``struct screen_info``: the screen that the kernel finds, at the start of boot_params.

All zero is a machine without one, and what pyvmm's machines are: a kernel then sets up no VGA
console. The fields are those of a text mode first, then of a linear frame buffer (VESA, EFI).

Offsets: include/uapi/linux/screen_info.h (checked against the C compiler in the tests).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_FORMAT = struct.Struct("<BBHHBBBBHHBBHHHHIIHHH8BHHHHIIH")


class ScreenInfo(NamedTuple):
    """``struct screen_info``."""

    orig_x: int = 0
    orig_y: int = 0
    ext_mem_k: int = 0
    orig_video_page: int = 0
    orig_video_mode: int = 0
    orig_video_cols: int = 0
    flags: int = 0
    unused2: int = 0
    orig_video_ega_bx: int = 0
    unused3: int = 0
    orig_video_lines: int = 0
    orig_video_isVGA: int = 0  # noqa: N815, the name is the header's
    orig_video_points: int = 0
    lfb_width: int = 0
    lfb_height: int = 0
    lfb_depth: int = 0
    lfb_base: int = 0
    lfb_size: int = 0
    cl_magic: int = 0
    cl_offset: int = 0
    lfb_linelength: int = 0
    red_size: int = 0
    red_pos: int = 0
    green_size: int = 0
    green_pos: int = 0
    blue_size: int = 0
    blue_pos: int = 0
    rsvd_size: int = 0
    rsvd_pos: int = 0
    vesapm_seg: int = 0
    vesapm_off: int = 0
    pages: int = 0
    vesa_attributes: int = 0
    capabilities: int = 0
    ext_lfb_base: int = 0
    reserved: int = 0

    def pack(self) -> bytes:
        """Its bytes in boot_params."""
        return _FORMAT.pack(*self)
