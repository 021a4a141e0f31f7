"""Names for addresses, against nm: of an ELF's symbol table, and of nm's own list."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pyvmm.debug.kallsyms import find_symbols
from pyvmm.debug.symbols import Symbol, SymbolTable, from_elf, from_system_map
from pyvmm.errors import ImageError

SOURCE = """
int data = 1;
int first(void) { return data; }
int second(void) { return first() + 1; }
int _start(void) { return second(); }
"""


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("symbols") / "linked"
    command = ["gcc", "-nostdlib", "-static", "-no-pie", "-x", "c", "-o", str(path), "-"]
    subprocess.run(command, input=SOURCE, text=True, check=True)
    return path


def nm(path: Path) -> str:
    return subprocess.run(["nm", "-n", path], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["first", "second", "_start", "data"])
def test_symbols_of_an_elf_are_nms(linked: Path, name: str) -> None:
    (address,) = (int(line.split()[0], 16) for line in nm(linked).splitlines()
                  if line.split()[-1] == name)  # fmt: skip
    assert from_elf(memoryview(linked.read_bytes())).find(name) == address
    assert from_system_map(nm(linked)).find(name) == address


def test_stripped_elf_has_no_symbols(linked: Path, tmp_path: Path) -> None:
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "-o", stripped, linked], check=True)
    assert len(from_elf(memoryview(stripped.read_bytes()))) == 0


def test_cut_off_elf_is_refused(linked: Path) -> None:
    data = linked.read_bytes()
    with pytest.raises(ImageError, match="reach beyond the end of the file"):
        from_elf(memoryview(data[:-64]))


def test_text_that_is_no_system_map_is_refused() -> None:
    with pytest.raises(ImageError, match=r"line 2 of the System\.map is 'hello'"):
        from_system_map("ffffffff81000000 T _text\nhello\n")


def test_address_is_told_as_linux_tells_it() -> None:
    table = SymbolTable([Symbol(0x1000, "one"), Symbol(0x1040, "two"), Symbol(0x1040, "two_too")])
    assert table.describe(0x0FFF) is None
    assert table.describe(0x1000) == "one+0x0/0x40"
    assert table.describe(0x103F) == "one+0x3f/0x40"
    assert table.describe(0x1045) == "two+0x5"
    assert table.describe(0x1040 + 0x20_0000) is None
    assert table.find("two_too") == 0x1040
    assert table.find("three") is None


@pytest.mark.parametrize(
    "image", [b"", bytes(4096), b"".join(b"%d\0" % n for n in range(10)) * 50, b"\xff" * 65536]
)
def test_memory_without_kallsyms_has_no_symbols(image: bytes) -> None:
    assert find_symbols(image) is None
