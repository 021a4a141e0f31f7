"""Builds ``pyvmm.loader._relocate``: two loops in C (relocate.c), reached by cffi in API mode.

Run by setup.py (``cffi_modules``) at install.
"""

from __future__ import annotations

import os

from cffi import FFI


def _read(name: str) -> str:
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), name)) as file:
        return file.read()


ffibuilder = FFI()
ffibuilder.cdef(_read("relocate.h"))
ffibuilder.set_source("pyvmm.loader._relocate", _read("relocate.c"), extra_compile_args=["-O2"])
