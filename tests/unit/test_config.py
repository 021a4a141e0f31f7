"""What makes a machine, and what is said of what does not."""

from __future__ import annotations

from typing import Any

import pytest

from pyvmm.boot import Protocol
from pyvmm.config import MachineConfig
from pyvmm.errors import ConfigError
from pyvmm.loader.kaslr import Kaslr
from pyvmm.loader.load import Decompress
from pyvmm.memory import HugePages
from pyvmm.units import MiB


def test_defaults_make_a_machine() -> None:
    MachineConfig(kernel="bzImage").check()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cpus": 0}, "0 CPUs was asked for; expected 1 to 32"),
        ({"cpus": 33}, "33 CPUs was asked for; expected 1 to 32"),
        ({"memory_bytes": 0}, "0 bytes of memory was asked for; expected at least 2 MiB"),
        ({"memory_bytes": 1 * MiB}, "expected at least 2 MiB"),
        ({"memory_bytes": 512 * MiB + 1}, "multiple of the page size, 4096"),
        ({"memory_bytes": 1 << 60}, "expected at most"),
        (
            {"memory_bytes": 3 * MiB, "huge_pages": HugePages.HUGETLB},
            "3 MiB .* huge pages; expected a multiple of their size, 2 MiB",
        ),
        ({"protocol": Protocol.LINUX32, "decompress": Decompress.HOST}, "--decompress host"),
        ({"protocol": Protocol.PVH, "decompress": Decompress.GUEST}, "--decompress guest"),
        ({"kaslr": Kaslr(), "decompress": Decompress.GUEST}, "one that decompresses itself moves"),
        ({"kaslr": Kaslr(), "protocol": Protocol.LINUX32}, "leave out --kaslr"),
        ({"kaslr": Kaslr(), "protocol": Protocol.PVH}, "--kaslr cannot go with --protocol pvh"),
        ({"kaslr": Kaslr(), "cmdline": "quiet nokaslr"}, "nokaslr on the kernel's command line"),
    ],
)
def test_check_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MachineConfig(kernel="bzImage", **values).check()


def test_kaslr_goes_with_no_command_line() -> None:
    MachineConfig(kernel="bzImage", kaslr=Kaslr()).check()


def test_kaslr_goes_with_words_that_only_look_like_nokaslr() -> None:
    MachineConfig(kernel="bzImage", kaslr=Kaslr(), cmdline="nokaslr.x xnokaslr").check()


@pytest.mark.parametrize(
    ("protocol", "asked", "done"),
    [
        (Protocol.AUTO, None, Decompress.HOST),
        (Protocol.LINUX64, None, Decompress.HOST),
        (Protocol.LINUX32, None, Decompress.GUEST),
        (Protocol.LINUX64, Decompress.GUEST, Decompress.GUEST),
    ],
)
def test_decompress_where(protocol: Protocol, asked: Decompress | None, done: Decompress) -> None:
    config = MachineConfig(kernel="bzImage", protocol=protocol, decompress=asked)
    config.check()
    assert config.decompress_where is done
