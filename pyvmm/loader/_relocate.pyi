"""The compiled module, as the type checker sees it. ``Any`` begins and ends here."""

from typing import Any

class _Lib:
    def last_zero(self, table: object, words: int) -> int: ...
    def apply_relocations(
        self,
        kernel: object,
        kernel_bytes: int,
        link_address: int,
        table: object,
        words: int,
        width: int,
        delta: int,
    ) -> int: ...

class _Ffi:
    def from_buffer(
        self, cdecl: str, python_buffer: object, require_writable: bool = ...
    ) -> Any: ...

ffi: _Ffi
lib: _Lib
