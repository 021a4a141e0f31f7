"""The other commands as a user runs them: fetch, initramfs, extract, doctor."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest
from builders.cli import COMMAND, complaint, pyvmm, running
from builders.fake_apt import FakeApt

from pyvmm import embedded

pytestmark = pytest.mark.host

needs_dpkg = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None, reason="the packages are made with dpkg-deb"
)

CLOUD = "linux-image-6.1.0-9-cloud-amd64-unsigned"

BUSYBOX_SOURCE = """
#include <stdio.h>
int main(void) { puts("bin/busybox\\nbin/sh"); return 0; }
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment with a cache of its own, and an apt with one kernel: the embedded one."""
    apt = FakeApt(tmp_path)
    kernel = Path(embedded.path("kernel.bzimage")).read_bytes()
    apt.add_package(CLOUD, "6.1.9-1", {"boot/vmlinuz-9": kernel})
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": apt.path}


@pytest.fixture(scope="module")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tools") / "busybox"
    command = ["gcc", "-static", "-x", "c", "-o", str(path), "-"]
    subprocess.run(command, input=BUSYBOX_SOURCE, text=True, check=True)
    return path


# fetch


@needs_dpkg
@pytest.mark.boot
def test_kernel_is_fetched_listed_verified_and_booted_by_name(environment: dict[str, str]) -> None:
    assert b"not fetched yet" in pyvmm("fetch", "--list", env=environment).stdout
    result = pyvmm("run", "--kernel", "debian", "--mem", "16M", typed=b"exit 3\n", env=environment)
    assert result.returncode == 3
    listed = pyvmm("fetch", "--list", env=environment).stdout
    assert b"debian:6.1-cloud = debian = debian:6.1\n" in listed
    assert b"  fetched: 6.1.9-1\n" in listed
    path = pyvmm("fetch", "--path-only", "debian:6.1", env=environment).stdout.decode().strip()
    assert Path(path).read_bytes() == Path(embedded.path("kernel.bzimage")).read_bytes()
    verified = pyvmm("fetch", "--verify", "debian", env=environment).stdout.decode()
    assert verified == f"debian: {CLOUD} 6.1.9-1, checksum right\n  {path}\n"


@needs_dpkg
def test_changed_kernel_does_not_pass_for_a_fetched_one(environment: dict[str, str]) -> None:
    path = pyvmm("fetch", "--path-only", "debian", env=environment).stdout.decode().strip()
    status = os.stat(path)
    with open(path, "r+b") as kernel:
        kernel.write(b"changed")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    result = pyvmm("fetch", "--verify", "debian", env=environment)
    assert result.returncode == 1
    assert re.search(r"has SHA-256 \w+, expected \w+; remove .*", complaint(result))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no kernel's name was given; `pyvmm fetch --list`"),
        (["nosuch"], "'nosuch' is not the name of a kernel to fetch"),
        (["--list", "debian"], "--list goes with no names"),
        (["--update", "--verify", "debian"], "expected one of the two"),
    ],
)
def test_fetch_refuses_a_mistake(arguments: list[str], said: str) -> None:
    result = pyvmm("fetch", *arguments)
    assert result.returncode == 2
    assert said in complaint(result)


def test_fetch_on_a_machine_without_apt_is_told(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    for arguments in (["fetch", "debian"], ["run", "--kernel", "debian"]):
        result = pyvmm(*arguments, env=environment)
        assert result.returncode == 1
        assert "apt-cache is not on this machine" in complaint(result)


@needs_dpkg
@pytest.mark.parametrize("cache", ["/dev/null", "/proc"])
def test_cache_that_cannot_be_written_is_told(cache: str, environment: dict[str, str]) -> None:
    result = pyvmm("fetch", "debian", env={**environment, "XDG_CACHE_HOME": cache})
    assert result.returncode == 1
    assert f"the cache {cache}/pyvmm cannot be written" in complaint(result)


# initramfs


def test_initramfs_is_made(tmp_path: Path, busybox: Path) -> None:
    out = tmp_path / "initramfs"
    result = pyvmm("initramfs", "-o", out, "--busybox", busybox)
    assert (result.returncode, result.stdout) == (0, b"")
    assert result.stderr.decode() == f"{out}: {out.stat().st_size} bytes\n"
    assert out.read_bytes()[:6] == b"070701"


@pytest.mark.parametrize("option", ["--init", "--busybox", "--add"])
@pytest.mark.parametrize("path", ["/dev/zero", "/no/such/file", "fifo"])
def test_initramfs_refuses_what_is_no_file(
    option: str, path: str, tmp_path: Path, busybox: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    arguments = ["--busybox", str(busybox), option, str(tmp_path / path)]
    result = pyvmm("initramfs", "-o", tmp_path / "out", *arguments)
    assert result.returncode == 2
    assert complaint(result).startswith(str(tmp_path / path))
    assert not (tmp_path / "out").exists()


def test_initramfs_to_standard_output_leaves_its_name_alone(tmp_path: Path, busybox: Path) -> None:
    link = tmp_path / "stdout"
    link.symlink_to("/proc/self/fd/1")  # as /dev/stdout is
    with open(tmp_path / "out", "wb") as out:
        assert pyvmm("initramfs", "-o", link, "--busybox", busybox, stdout=out).returncode == 0
    assert link.is_symlink()
    assert (tmp_path / "out").read_bytes()[:6] == b"070701"


# extract


def test_vmlinux_is_extracted_from_a_bzimage_and_from_itself(tmp_path: Path) -> None:
    vmlinux = tmp_path / "vmlinux"
    for source in ("embedded:bzimage", vmlinux, "embedded"):
        result = pyvmm("extract", source, "-o", vmlinux)
        assert result.returncode == 0
        assert result.stderr.decode() == f"{vmlinux}: {vmlinux.stat().st_size} bytes\n"
        assert vmlinux.read_bytes() == Path(embedded.path("kernel.elf")).read_bytes()
    assert os.listdir(tmp_path) == ["vmlinux"]


def test_extract_to_a_device_leaves_it_one() -> None:
    assert pyvmm("extract", "embedded", "-o", "/dev/null").returncode == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_extract_from_no_kernel_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"text\n")
    result = pyvmm("extract", tmp_path / "text", "-o", tmp_path / "vmlinux")
    assert result.returncode == 2
    assert "is text" in complaint(result)
    assert os.listdir(tmp_path) == ["text"]


@pytest.mark.parametrize(
    ("out", "status", "said"),
    [
        ("/no/such/directory/vmlinux", 2, "No such file or directory; expected the path"),
        ("/", 2, "Is a directory; expected the path"),
        ("/dev/full", 1, "No space left on device; make room"),
    ],
)
def test_output_that_cannot_be_written_is_told(out: str, status: int, said: str) -> None:
    result = pyvmm("extract", "embedded", "-o", out)
    assert result.returncode == status
    assert said in complaint(result)


# doctor


@pytest.mark.parametrize(
    ("mount", "said"),
    [
        ("mount -t tmpfs none /dev", r"  NO  /dev/kvm is not there\n      -> load KVM"),
        ("mount --bind /dev/null /dev/kvm", r"  NO  .*the file is not a KVM device"),
    ],
)
def test_doctor_says_what_is_wrong_and_what_to_do(mount: str, said: str) -> None:
    if not os.path.exists("/dev/kvm"):
        pytest.skip("there is no /dev/kvm to put something over")
    script = ["unshare", "--map-root-user", "--mount", "sh", "-c", f'{mount} && exec "$0" "$@"']
    if subprocess.run([*script, "true"], stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("this machine lets nobody make a mount namespace")
    result = subprocess.run(
        [*script, *COMMAND, "doctor"], capture_output=True, cwd="/", check=False
    )
    report = result.stdout.decode()
    assert result.returncode == 1
    assert re.search(said, report)
    assert report.endswith("cannot run guests: 1 of the checks above say NO.\n")


# Standard output that is no use.


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["fetch", "--list"]])
def test_reader_that_has_left_is_no_traceback(arguments: list[str], unbuffered: str) -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    result = pyvmm(*arguments, stdout=write_fd, env=environment)
    os.close(write_fd)
    assert result.returncode in (0, 1)  # argparse says nothing of a help that it cannot print
    assert result.stderr == b""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_standard_output_is_told(unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        result = pyvmm("fetch", "--list", stdout=full, env=environment)
    assert result.returncode == 1
    assert complaint(result) == "[Errno 28] No space left on device"


def test_closed_standard_error_sends_no_complaint_elsewhere() -> None:
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh", *COMMAND]
    for arguments in (["bogus"], ["run", "--bogus"], ["fetch", "nosuch"]):
        result = subprocess.run([*shell, *arguments], stdout=subprocess.PIPE, cwd="/", check=False)
        assert (result.returncode, result.stdout) == (2, b"")


def test_interrupt_of_a_fetch_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C while apt downloads."""
    tools = tmp_path / "bin"
    tools.mkdir()
    cache = tmp_path / "cache"
    for name, script in (
        ("apt-cache", f"echo {CLOUD}\n[ $1 = pkgnames ] || cat {tmp_path}/paragraph"),
        ("apt-get", f"touch {tmp_path}/downloading; echo downloading; exec sleep 60"),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    (tmp_path / "paragraph").write_text(
        f"Package: {CLOUD}\nVersion: 1\nSHA256: 00\nSize: 1\n", encoding="utf-8"
    )
    environment = {
        **os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(cache)
    }  # fmt: skip
    with running("fetch", "debian", env=environment, process_group=0) as fetch:
        while not (tmp_path / "downloading").exists():
            assert fetch.process.poll() is None
        os.killpg(fetch.process.pid, signal.SIGINT)
        assert fetch.end() == (130, "pyvmm: ended by SIGINT\n")
    assert [path for path in cache.rglob("*") if not path.is_dir()] == []
    assert os.listdir(cache / "pyvmm") == ["kernels"]
