"""The command line that a guest's kernel got, and what it made of it."""

from __future__ import annotations

import pytest
from builders.stock_kernels import CMDLINE, boot_kernel, make_initramfs, stock_kernel

from pyvmm.loader.cmdline_builder import Cmdline
from pyvmm.units import KiB

pytestmark = [pytest.mark.boot, pytest.mark.timeout(60)]

INIT = b"""\
#!/bin/sh
mount -t proc proc /proc
echo "report: cmdline $(cat /proc/cmdline)"
for argument; do
    echo "report: argument <$argument>"
done
env | grep -E '^(motd|nothing)=' | while read -r variable; do
    echo "report: environment $variable"
done
dmesg | grep 'Registering device virtio' | while read -r message; do
    echo "report: virtio $message"
done
poweroff -f
"""

# Words as they are written, and as init gets them: the table of test_loader_cmdline_builder.py.
WORDS = {
    "a=b=c": "a=b=c",
    "a=": "a=",
    "=a": "=a",
    "=a=b": "=a=b",
    'a="b c"': "a=b c",
    '"a=b c"': "a=b c",
    '"a b"': "a b",
    'a=""': "a=",
    '""': "",
    'a=b"c d"e': 'a=b"c d"e',
    'a="b"c': 'a=b"c',
    'a=b"c d"': 'a=b"c d"',
    'a"b c"=d': 'a"b c"=d',
    '"a"=b': 'a"=b',
    'a="b""c"': 'a=b""c',
    "--=b": "--=b",
    "--b": "--b",
}


@pytest.fixture(scope="module")
def initramfs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_initramfs(tmp_path_factory.mktemp("cmdline"), INIT)


def test_kernel_reads_a_built_line_as_it_was_meant(initramfs: str) -> None:
    cmdline = Cmdline.parse(f"{CMDLINE} quiet")
    cmdline.insert("motd", "hello  world")
    cmdline.insert("nothing", "")
    cmdline.add_virtio_mmio_device(4 * KiB, 0xC000_1000, 5)
    cmdline.add_virtio_mmio_device(512, 0xC000_2000, 6, 7)
    cmdline.insert_str("no_kernel_knows_me")
    cmdline.insert_init_args("single", "two words", "", "x=y z")
    boot = boot_kernel(stock_kernel("linux:tiny").path, initrd=initramfs, cmdline=str(cmdline))
    assert boot.status == 0, boot.messages
    assert boot.report["cmdline"] == [str(cmdline)]
    assert boot.report["argument"] == [
        *("<no_kernel_knows_me>", "<single>", "<two words>", "<>", "<x=y z>")
    ]
    assert sorted(boot.report["environment"]) == ["motd=hello  world", "nothing="]
    first, second = boot.report["virtio"]
    assert "virtio-mmio.0 at 0xc0001000-0xc0001fff, IRQ 5." in first
    assert "virtio-mmio.7 at 0xc0002000-0xc00021ff, IRQ 6." in second


def test_kernel_reads_quotes_as_the_builder_does(initramfs: str) -> None:
    line = f"{CMDLINE} quiet -- {' '.join(WORDS)}"
    boot = boot_kernel(stock_kernel("linux:tiny").path, initrd=initramfs, cmdline=line)
    assert boot.status == 0, boot.messages
    assert boot.report["argument"] == [f"<{argument}>" for argument in WORDS.values()]
    assert Cmdline.parse(line).init_arguments == tuple(WORDS.values())
