"""The constants of <linux/kvm.h> under their own names: ``constants.KVM_PIT_SPEAKER_DUMMY``.

All that ``ffi_build.py`` lists are here; a name that is not raises AttributeError. Each value comes
from the header that the package was compiled against.
"""

from __future__ import annotations

from kvm_bindings._abi import lib


def __getattr__(name: str) -> int:
    if not name.startswith("KVM_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return int(getattr(lib, name))


def __dir__() -> list[str]:
    return [name for name in dir(lib) if name.startswith("KVM_")]
