"""The assembler for test guests: modes, origin, errors. Encodings are from the SDM, volume 2."""

from __future__ import annotations

import pytest
from builders.assembler import AssemblyError, assemble


@pytest.mark.parametrize(
    ("bits", "code"), [(16, "66b878563412"), (32, "b878563412"), (64, "b878563412")]
)
def test_code_is_for_the_mode_asked_for(bits: int, code: str) -> None:
    assert assemble("mov $0x12345678, %eax", bits).hex() == code


def test_code_runs_at_its_origin() -> None:
    assert assemble("mov $here, %ax; here: hlt", 16, 0x1000).hex() == "b80310f4"


def test_intel_syntax_can_be_chosen() -> None:
    assert assemble(".intel_syntax noprefix\nout 0x80, al", 64).hex() == "e680"


def test_refused_source_says_why() -> None:
    with pytest.raises(AssemblyError, match="no such instruction"):
        assemble("frobnicate %eax", 32)


def test_missing_symbol_says_which() -> None:
    with pytest.raises(AssemblyError, match="nowhere"):
        assemble("call nowhere", 64)
