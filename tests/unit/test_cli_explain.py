"""``pyvmm explain`` as a command: what it writes where, and its status."""

from __future__ import annotations

import gzip
import io
import json
import os
import pty
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from builders import bzimage as bz
from builders.cli import COMMAND, complaint, pyvmm
from builders.elf import Elf, Segment, vmlinux

from pyvmm.cli.main import main


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinux"
    path.write_bytes(vmlinux())
    return path


def test_image_that_boots_is_explained(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(kernel)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1] == "pyvmm can boot it." or str(kernel) in out.replace("\n", "")
    assert "\x1b" not in out
    assert err == ""


def test_image_that_does_not_boot_is_explained_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cut").write_bytes(vmlinux()[:100])
    assert main(["explain", str(tmp_path / "cut")]) == 2
    out, err = capsys.readouterr()
    assert "rule elf-phdrs-truncated" in out
    assert "e_entry" in out
    assert err == ""


def test_file_that_is_not_there_is_one_line() -> None:
    result = pyvmm("explain", "/does/not/exist")
    assert result.returncode == 2
    assert "there is no such file" in complaint(result)
    assert result.stdout == b""


@pytest.mark.parametrize("option", ["--mem=16K", "--protocol=bios"])
def test_option_that_makes_no_machine_is_refused(kernel: Path, option: str) -> None:
    assert main(["explain", str(kernel), option]) == 2


def test_options_are_those_of_run(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    initrd = kernel.with_name("initrd")
    initrd.write_bytes(bytes(5000))
    options = ["--mem", "32M", "--protocol", "linux64", "--cmdline", "abc", "--initrd", str(initrd)]
    assert main(["explain", str(kernel), "--json", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    fields = report["sections"]["boot_params"]["fields"]
    assert fields["ramdisk_size"]["value"] == 5000
    sizes = {span["name"]: span["size_bytes"] for span in report["memory_map"]["spans"]}
    assert sizes["command line"] == len("abc") + 1
    assert report["memory_map"]["memory_bytes"] == 32 << 20


def test_html_goes_to_the_file_that_is_named(kernel: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["explain", str(kernel), "--html", "-o", str(page)]) == 0
    ElementTree.parse(page)


def test_configuration_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "CONFIG_SMP=y\nCONFIG_PVH=y\n"
    inside = b"\xf4" * 16 + b"IKCFG_ST" + gzip.compress(text.encode()) + b"IKCFG_ED"
    image = Elf(segments=[Segment(0x20_0000, inside)], entry=0x20_0000).build()
    path = tmp_path / "bzImage"
    path.write_bytes(bz.bzimage(bz.compress("gzip", image)))
    assert main(["explain", str(path), "--config"]) == 0
    assert capsys.readouterr().out == text


def test_configuration_that_is_not_there_is_one_line(kernel: Path) -> None:
    result = pyvmm("explain", kernel, "--config")
    assert result.returncode == 2
    assert "CONFIG_IKCONFIG" in complaint(result)


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colour_is_for_terminals_that_want_it(
    kernel: Path, environment: dict[str, str], coloured: bool
) -> None:
    def run() -> None:
        os.environ.pop("NO_COLOR", None)
        os.environ.update({"TERM": "xterm", **environment})
        os.execv(sys.executable, [*COMMAND, "explain", str(kernel)])

    pid, terminal = pty.fork()
    if pid == 0:
        run()
    output = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the process has ended
            break
        if not part:
            break
        output += part
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (b"\x1b[" in output) is coloured


def test_terminal_without_unicode_gets_ascii(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    assert main(["explain", str(kernel)]) == 0
    output = buffer.getvalue().decode("ascii")
    assert "0x0020_0000  | kernel r-x " in output
