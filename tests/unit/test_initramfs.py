"""The initramfs and its cpio archive, as GNU cpio reads them."""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from pyvmm.cli.main import main
from pyvmm.errors import ConfigError, ImageError
from pyvmm.initramfs import DEFAULT_INIT, READY_MARKER, CpioEntry, build_initramfs, cpio_archive

needs_cpio = pytest.mark.skipif(
    shutil.which("cpio") is None, reason="GNU cpio is not here: `apt-get install cpio`"
)

BUSYBOX_SOURCE = """
#include <stdio.h>
int main(void) { puts("bin/busybox\\nbin/sh\\nusr/bin/seq\\nsbin/reboot"); return 0; }
"""


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static and a dynamic program that list applets as busybox does, and one that does not."""
    directory = tmp_path_factory.mktemp("tools")
    for name, options, source in (
        ("busybox", ["-static"], BUSYBOX_SOURCE),
        ("dynamic", [], BUSYBOX_SOURCE),
        ("failing", ["-static"], "int main(void) { return 3; }"),
    ):
        command = ["gcc", *options, "-x", "c", "-o", str(directory / name), "-"]
        subprocess.run(command, input=source, text=True, check=True)
    return directory


@pytest.fixture
def busybox(tools: Path) -> str:
    return str(tools / "busybox")


def listing(archive: bytes) -> dict[str, str]:
    """What `cpio -tv` shows, by name: mode, owner, size or device numbers, and link target."""
    output = subprocess.run(
        ["cpio", "--quiet", "-itvn"],
        input=archive,
        capture_output=True,
        check=True,
        env={**os.environ, "TZ": "UTC", "LC_ALL": "C"},
    ).stdout.decode()
    members = {}
    for line in output.splitlines():
        before, _, name = line.partition("Jan  1  1970 ")
        name, _, target = name.partition(" -> ")
        fields = before.split()
        members[name] = " ".join([fields[0], *fields[2:], *([target] if target else [])])
    return members


def content(archive: bytes, name: str) -> bytes:
    return subprocess.run(
        ["cpio", "--quiet", "-i", "--to-stdout", name],
        input=archive,
        capture_output=True,
        check=True,
    ).stdout


def build(tmp_path: Path, busybox: str, *extra_files: tuple[str, str]) -> bytes:
    out_path = tmp_path / "initramfs"
    build_initramfs(str(out_path), busybox_path=busybox, extra_files=extra_files)
    return out_path.read_bytes()


# The cpio format.


@needs_cpio
def test_cpio_reads_every_kind_of_member() -> None:
    archive = cpio_archive(
        [
            CpioEntry("dir", stat.S_IFDIR | 0o1777),
            CpioEntry("dir/file", stat.S_IFREG | 0o640, b"12345"),
            CpioEntry("link", stat.S_IFLNK | 0o777, b"dir/file"),
            CpioEntry("null", stat.S_IFCHR | 0o666, device=(1, 3)),
        ]
    )
    assert listing(archive) == {
        "dir": "drwxrwxrwt 0 0 0",
        "dir/file": "-rw-r----- 0 0 5",
        "link": "lrwxrwxrwx 0 0 8 dir/file",
        "null": "crw-rw-rw- 0 0 1, 3",
    }


@needs_cpio
@pytest.mark.parametrize("size", range(9))
def test_cpio_finds_what_follows_a_member_of_any_length(size: int) -> None:
    archive = cpio_archive(
        [
            CpioEntry("n" * (size + 1), stat.S_IFREG | 0o644, b"x" * size),
            CpioEntry("last", stat.S_IFREG | 0o644, b"the last one"),
        ]
    )
    assert content(archive, "n" * (size + 1)) == b"x" * size
    assert content(archive, "last") == b"the last one"


def test_cpio_header_is_as_the_format_says() -> None:
    archive = cpio_archive([CpioEntry("a", stat.S_IFREG | 0o644, b"data")])
    fields = [archive[6 + 8 * i : 14 + 8 * i] for i in range(13)]
    assert archive[:6] == b"070701"
    # ino mode uid gid nlink mtime filesize maj min rmaj rmin namesize chksum
    assert fields[1] == b"000081a4"
    assert fields[2:6] == [b"00000000", b"00000000", b"00000001", b"00000000"]
    assert fields[6] == b"00000004"
    assert fields[7:] == [b"00000000"] * 4 + [b"00000002", b"00000000"]
    assert archive[110:116] == b"a\0data"
    assert archive[116:122] == b"070701"
    assert archive.endswith(b"TRAILER!!!\0\0\0\0")
    assert len(archive) % 4 == 0


def test_cpio_inodes_differ() -> None:
    archive = cpio_archive([CpioEntry(name, stat.S_IFREG | 0o644) for name in "abc"])
    assert len({archive[112 * i + 6 : 112 * i + 14] for i in range(3)}) == 3


# The initramfs.


@needs_cpio
def test_initramfs_has_busybox_its_applets_and_the_mount_points(
    tmp_path: Path, busybox: str
) -> None:
    archive = build(tmp_path, busybox)
    busybox_bytes = os.path.getsize(busybox)
    assert listing(archive) == {
        "bin": "drwxr-xr-x 0 0 0",
        "bin/busybox": f"-rwxr-xr-x 0 0 {busybox_bytes}",
        "bin/sh": "lrwxrwxrwx 0 0 12 /bin/busybox",
        "dev": "drwxr-xr-x 0 0 0",
        "dev/console": "crw------- 0 0 5, 1",
        "dev/null": "crw-rw-rw- 0 0 1, 3",
        "etc": "drwxr-xr-x 0 0 0",
        "init": f"-rwxr-xr-x 0 0 {len(DEFAULT_INIT)}",
        "proc": "drwxr-xr-x 0 0 0",
        "root": "drwxr-xr-x 0 0 0",
        "sbin": "drwxr-xr-x 0 0 0",
        "sbin/reboot": "lrwxrwxrwx 0 0 12 /bin/busybox",
        "sys": "drwxr-xr-x 0 0 0",
        "tmp": "drwxrwxrwt 0 0 0",
        "usr": "drwxr-xr-x 0 0 0",
        "usr/bin": "drwxr-xr-x 0 0 0",
        "usr/bin/seq": "lrwxrwxrwx 0 0 12 /bin/busybox",
    }
    assert content(archive, "bin/busybox") == Path(busybox).read_bytes()


@needs_cpio
def test_initramfs_directories_come_before_what_is_in_them(tmp_path: Path, busybox: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    names = list(listing(build(tmp_path, busybox, (str(tmp_path / "file"), "/a/b/c/file"))))
    for index, name in enumerate(names):
        assert os.path.dirname(name) in {"", *names[:index]}


def test_default_init_is_a_shell_script_that_says_when_it_is_ready(tmp_path: Path) -> None:
    script = tmp_path / "init"
    script.write_bytes(DEFAULT_INIT)
    subprocess.run(["sh", "-n", script], check=True)
    assert DEFAULT_INIT.startswith(b"#!/bin/sh\n")
    assert f"echo '{READY_MARKER}'".encode() in DEFAULT_INIT


@needs_cpio
def test_init_script_is_the_one_that_was_given(tmp_path: Path, busybox: str) -> None:
    out_path = tmp_path / "initramfs"
    build_initramfs(str(out_path), busybox_path=busybox, init_script=b"#!/bin/sh\nexit 3\n")
    assert content(out_path.read_bytes(), "init") == b"#!/bin/sh\nexit 3\n"
    assert listing(out_path.read_bytes())["init"].startswith("-rwxr-xr-x")


@needs_cpio
def test_extra_directory_is_added_with_all_that_is_in_it(tmp_path: Path, busybox: str) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "run.sh").write_bytes(b"#!/bin/sh\n")
    (source / "sub" / "run.sh").chmod(0o750)
    (source / "link").symlink_to("sub/run.sh")
    members = listing(build(tmp_path, busybox, (str(source), "/root/tests")))
    assert members["root/tests/sub"].startswith("drwxr-xr-x")
    assert members["root/tests/sub/run.sh"] == "-rwxr-x--- 0 0 10"
    assert members["root/tests/link"] == "lrwxrwxrwx 0 0 10 sub/run.sh"


def test_same_input_gives_the_same_bytes(tmp_path: Path, busybox: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    first = build(tmp_path, busybox, (str(tmp_path / "file"), "/file"))
    os.utime(tmp_path / "file", (1, 1))
    assert build(tmp_path, busybox, (str(tmp_path / "file"), "/file")) == first


def test_gzip_compresses_the_same_archive(tmp_path: Path, busybox: str) -> None:
    plain = build(tmp_path, busybox)
    packed = tmp_path / "packed"
    size = build_initramfs(str(packed), busybox_path=busybox, compress=True)
    assert packed.stat().st_size == size < len(plain)
    assert gzip.decompress(packed.read_bytes()) == plain


# Bad input.


def test_missing_extra_file_is_refused(tmp_path: Path, busybox: str) -> None:
    with pytest.raises(ImageError, match="/nothing cannot be added: No such file"):
        build(tmp_path, busybox, (str(tmp_path / "nothing"), "/file"))


def test_extra_file_that_is_a_fifo_is_refused(tmp_path: Path, busybox: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ImageError, match="fifo is neither a file nor a directory"):
        build(tmp_path, busybox, (str(tmp_path / "fifo"), "/file"))


@pytest.mark.parametrize("name", ["/init", "/bin/busybox", "/bin/sh", "/dev/null"])
def test_extra_file_in_place_of_another_is_refused(tmp_path: Path, busybox: str, name: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ConfigError, match=f"{name} would be in the initramfs twice"):
        build(tmp_path, busybox, (str(tmp_path / "file"), name))


def test_extra_file_below_a_file_is_refused(tmp_path: Path, busybox: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ConfigError, match="/init is not a directory there"):
        build(tmp_path, busybox, (str(tmp_path / "file"), "/init/file"))


@pytest.mark.parametrize("name", ["", "/", "relative", "/..", "/a\0b"])
def test_place_that_is_no_absolute_path_is_refused(tmp_path: Path, busybox: str, name: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ConfigError, match="is not a place in the initramfs"):
        build(tmp_path, busybox, (str(tmp_path / "file"), name))


def test_init_that_the_kernel_could_not_run_is_refused(tmp_path: Path, busybox: str) -> None:
    with pytest.raises(ImageError, match="the init script begins with b'echo hello"):
        build_initramfs(str(tmp_path / "out"), busybox_path=busybox, init_script=b"echo hello\n")


def test_busybox_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no such file; expected a static busybox"):
        build(tmp_path, str(tmp_path / "busybox"))


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01\x01" + bytes(100)])
def test_busybox_that_is_no_x86_64_binary_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "busybox").write_bytes(data)
    with pytest.raises(ImageError, match="expected an ELF file for x86-64"):
        build(tmp_path, str(tmp_path / "busybox"))


def test_busybox_that_is_dynamically_linked_is_refused(tmp_path: Path, tools: Path) -> None:
    with pytest.raises(ImageError, match="is dynamically linked"):
        build(tmp_path, str(tools / "dynamic"))


def test_busybox_that_lists_no_applets_is_refused(tmp_path: Path, tools: Path) -> None:
    with pytest.raises(ImageError, match="--list-full does not run here"):
        build(tmp_path, str(tools / "failing"))


def test_output_that_cannot_be_written_is_told(tmp_path: Path, busybox: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*: No such file or directory"):
        build_initramfs(str(tmp_path / "no" / "out"), busybox_path=busybox)


def test_failed_build_keeps_the_old_output(tmp_path: Path, busybox: str) -> None:
    (tmp_path / "initramfs").write_bytes(b"old")
    with pytest.raises(ImageError):
        build(tmp_path, busybox, (str(tmp_path / "nothing"), "/file"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["initramfs"]
    assert (tmp_path / "initramfs").read_bytes() == b"old"


# The command.


@needs_cpio
def test_command_makes_an_initramfs(
    tmp_path: Path, busybox: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "init.sh").write_bytes(b"#!/bin/sh\n")
    (tmp_path / "a:b").write_bytes(b"colon")
    (tmp_path / "data").write_bytes(b"data")
    out_path = tmp_path / "out"
    arguments = ["-o", str(out_path), "--busybox", busybox, "--init", str(tmp_path / "init.sh")]
    for argument in ("a:b", "data:/etc/", "data:/etc/other", "data"):
        arguments += ["--add", f"{tmp_path}/{argument}"]
    assert main(["initramfs", *arguments]) == 0
    archive = out_path.read_bytes()
    assert capsys.readouterr() == ("", f"{out_path}: {len(archive)} bytes\n")
    assert content(archive, "init") == b"#!/bin/sh\n"
    assert content(archive, "a:b") == b"colon"
    for name in ("etc/data", "etc/other", "data"):
        assert content(archive, name) == b"data"


def test_command_without_a_source_to_add_is_refused(
    tmp_path: Path, busybox: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out_path = str(tmp_path / "out")
    assert main(["initramfs", "-o", out_path, "--busybox", busybox, "--add", ":/x"]) == 2
    assert "names no file" in capsys.readouterr().err


def test_command_with_a_missing_init_is_refused(
    tmp_path: Path, busybox: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out_path = str(tmp_path / "out")
    assert main(["initramfs", "-o", out_path, "--busybox", busybox, "--init", "/nothing"]) == 2
    assert "/nothing: there is no such file" in capsys.readouterr().err


def test_command_does_not_take_an_empty_busybox_for_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["initramfs", "-o", str(tmp_path / "out"), "--busybox", ""]) == 2
    assert "expected a static busybox" in capsys.readouterr().err


@needs_cpio
def test_small_initramfs_has_an_init_that_says_ready(tmp_path: Path) -> None:
    out = tmp_path / "small"
    assert main(["initramfs", "--small", "-o", str(out)]) == 0
    assert out.stat().st_size < 4096
    subprocess.run(
        ["cpio", "-id", "--quiet", "init"], input=out.read_bytes(), cwd=tmp_path, check=True
    )
    # As any process but the first it says so and ends.
    said = subprocess.run([tmp_path / "init"], capture_output=True, check=True).stdout
    assert said.decode() == f"{READY_MARKER}\n"


def test_small_initramfs_refuses_a_busybox(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["initramfs", "--small", "--busybox", "busybox", "-o", "out"]) == 2
    assert "--small and --busybox were both given" in capsys.readouterr().err
