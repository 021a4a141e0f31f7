"""``pyvmm run`` as a user runs it: what is a mistake, what is told, signals, standard files."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from build_guest import build
from builders import elf
from builders.bzimage import bzimage, compress
from builders.cli import COMMAND, PROMPT, complaint, last_line, pyvmm, running

from pyvmm import embedded
from pyvmm.units import GiB, MiB

pytestmark = [pytest.mark.boot, pytest.mark.host]


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Guests of kernels/tests that do not end; ``pio_loop`` prints for ever."""
    directory = tmp_path_factory.mktemp("guests")
    build("spin", str(directory))
    build("pio_loop", str(directory), {"PORT": 0x3F8, "COUNT": 0x7FFF_FFFF})
    return directory


# Mistakes: one line, status 2.

GOOD_PAYLOAD = compress("lz4", elf.vmlinux())

IMAGES = {
    "empty": (b"", r"is empty \(0 bytes\); expected an x86-64 kernel"),
    "text": (b"#!/bin/sh\n", "is text .*check the path"),
    "zeros": (bytes(4096), "512 zero bytes.*is the copy complete"),
    "truncated-elf": (elf.vmlinux()[:100], "cut off after 100 bytes"),
    "truncated-bzimage": (bzimage(GOOD_PAYLOAD)[:3000], "is cut off or damaged"),
    "corrupt-payload": (
        bzimage(GOOD_PAYLOAD[:8] + b"\xff" * 64 + GOOD_PAYLOAD[72:]),
        "its lz4 payload is damaged.*get a fresh copy",
    ),
    "unknown-compressor": (
        bzimage(b"ABCD" + GOOD_PAYLOAD),
        "begins with the bytes 41 42 43 44; expected the magic number of gzip",
    ),
    "wrong-length": (
        bzimage(GOOD_PAYLOAD, payload_length=1 << 30),
        "says its payload is at .* the image is damaged",
    ),
    "old-protocol": (bzimage(GOOD_PAYLOAD, version=0x205), "boot protocol 2.05; expected 2.06"),
    "arm64": (elf.Elf(machine=183).build(), "is an ELF file for ARM64; expected x86-64"),
    "elf32": (
        elf.Elf([elf.Segment(0x10_0000, b"x")], bits=32, entry=0x10_0000).build(),
        "it is a 32-bit ELF file without a PVH note or a Multiboot header",
    ),
    "elf32-of-x86-64": (
        elf.Elf(elf_class=1, machine=62).build(),
        "is a 32-bit ELF file for x86-64",
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_image_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    content, said = IMAGES[name]
    path = tmp_path / name
    path.write_bytes(content)
    result = pyvmm("run", "--kernel", path)
    assert (result.returncode, result.stdout) == (2, b"")
    assert re.match(rf"{path}: .*{said}", complaint(result))


@pytest.mark.parametrize("option", ["--kernel", "--initrd"])
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/", "is a directory; expected a regular file"),
        ("/dev/zero", "is a character device; expected a regular file"),
        ("/no/such/file", "there is no such file; expected .*; check the path"),
    ],
)
def test_path_to_no_file_is_refused(option: str, path: str, said: str) -> None:
    result = pyvmm("run", option, path)
    assert result.returncode == 2
    assert re.match(f"{path}: {said}", complaint(result))


@pytest.mark.parametrize("option", ["--kernel", "--initrd"])
def test_pipe_is_refused_and_not_waited_for(option: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    result = pyvmm("run", option, tmp_path / "fifo")
    assert result.returncode == 2
    assert "fifo: is a pipe; expected a regular file" in complaint(result)


def test_huge_kernel_is_refused_at_once(tmp_path: Path) -> None:
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(10 * GiB)
    result = pyvmm("run", "--kernel", tmp_path / "huge")
    assert result.returncode == 2
    assert "begins with 512 zero bytes" in complaint(result)


def test_initrd_larger_than_memory_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(10 * GiB)
    result = pyvmm("run", "--initrd", tmp_path / "huge", "--mem", "64M")
    assert result.returncode == 2
    assert re.search(r"has 10737418240 bytes; .* in 64 MiB .*--mem", complaint(result))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mem", "0"], "0 bytes of memory was asked for; expected at least 2 MiB"),
        (["--mem", "100000G"], "expected at most"),
        (["--mem", "lots"], "'lots' is not a size; expected a number"),
        (["--mem=-1"], "'-1' is not a size"),
        (["--mem", "3M", "--huge-pages", "hugetlb"], "expected a multiple of their size, 2 MiB"),
        (["--cpus", "0"], "0 CPUs"),
        (["--cpus", "x"], "'x' is not a number of CPUs"),
        (["--timeout", "nan"], "'nan' is not a time-out; expected seconds above 0"),
        (["--timeout", "0"], "'0' is not a time-out"),
        (["--timeout=-1"], "'-1' is not a time-out"),
        (["--timeout", "inf"], "'inf' is not a time-out"),
        (["--protocol", "pvh", "--decompress", "guest"], "cannot go with --decompress guest"),
        (["--protocol", "linux32", "--decompress", "host"], "cannot go with --decompress host"),
        (["--protocol", "linux32"], "cannot be entered by linux32.*it offers pvh, linux64"),
        (["--protocol", "efi"], "invalid choice: 'efi'.*`pyvmm run --help` explains"),
        (["--cmdline", "x" * 2048], "has 2048 bytes; this kernel takes at most 2047; shorten it"),
        (["--kernel", "embeded"], "neither a file nor a kernel's name; did you mean embedded"),
        (["--kernel", "1"], "'1' is neither a file nor a kernel's name"),
        (["--serial", "tcp:1"], "expected stdio, file:PATH, pty, socket:PATH or none"),
        (["--kaslr"], "has no relocations behind its ELF file.*boot it without --kaslr"),
        (["--kaslr=here"], "'here' is no pair of addresses; expected --kaslr without a value"),
        (["--kaslr=0x1:y"], "'0x1:y' is no pair of addresses"),
        (["--kaslr", "--protocol", "pvh"], "--kaslr cannot go with --protocol pvh"),
        (["--kaslr", "--decompress", "guest"], "leave out --kaslr, or --decompress guest"),
        (["--kaslr", "--cmdline", "nokaslr"], "nokaslr on the kernel's command line"),
        (["--no-such-option"], "unrecognized arguments: --no-such-option"),
        (["bzImage"], "unrecognized arguments: bzImage"),
    ],
)
def test_mistake_is_told_in_one_line(arguments: list[str], said: str) -> None:
    result = pyvmm("run", *arguments)
    assert (result.returncode, result.stdout) == (2, b"")
    assert re.search(said, complaint(result))


def test_memory_too_small_for_the_kernel_is_told(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(elf.vmlinux())  # it reaches beyond 4 MiB
    result = pyvmm("run", "--kernel", tmp_path / "kernel", "--mem", "2M")
    assert result.returncode == 2
    assert re.search(r"which is not RAM; .* more than 5 MiB with --mem", complaint(result))


def test_mistake_is_told_before_anything_is_fetched(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PATH": str(tmp_path)}
    result = pyvmm("run", "--kernel", "debian", "--mem", "0", env=environment)
    assert "of memory was asked for" in complaint(result)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_kernel_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(elf.vmlinux())
    (tmp_path / "kernel").chmod(0)
    result = pyvmm("run", "--kernel", tmp_path / "kernel")
    assert result.returncode == 2
    assert "not readable by this user" in complaint(result)


# This machine's fault: one line, status 1.

IN_A_MOUNT_NAMESPACE = ["unshare", "--map-root-user", "--mount", "sh", "-c"]


@pytest.mark.parametrize(
    ("mount", "said"),
    [
        ("mount --bind /dev/null /dev/kvm", "ENOTTY.*the file is not a KVM device"),
        ("mount -t tmpfs none /dev", "ENOENT.*this kernel offers no KVM; load its module"),
        (
            "mount --bind /dev/kvm /dev/kvm && mount -o remount,bind,nodev /dev/kvm",
            "EACCES.*add your user to the device's group",
        ),
    ],
)
def test_machine_without_a_usable_kvm_is_told(mount: str, said: str) -> None:
    script = f'{mount} && exec "$0" "$@"'
    probe = [*IN_A_MOUNT_NAMESPACE, script, "true"]
    if subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("this machine lets nobody make a mount namespace")
    result = subprocess.run(
        [*IN_A_MOUNT_NAMESPACE, script, *COMMAND, "run"],
        stdin=subprocess.DEVNULL, capture_output=True, cwd="/", check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert re.search(said, complaint(result))


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("--as=400000000", "did not give 512 MiB of memory for the guest.*ask for less"),
        ("--nofile=6", "EMFILE|Too many open files"),
    ],
)
def test_host_at_its_limits_is_told(limit: str, said: str) -> None:
    result = subprocess.run(
        ["prlimit", limit, *COMMAND, "run"],
        stdin=subprocess.DEVNULL, capture_output=True, cwd="/", check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert re.search(said, complaint(result))


# What is told on the way.


def test_timestamps_stand_before_each_line_of_the_console() -> None:
    result = pyvmm("run", "--mem", "16M", "--timeout", "20", "--timestamps", typed=b"poweroff\n")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    stamps = [re.match(rb" *([0-9]+\.[0-9]{3}) \| ", line) for line in lines]
    assert len(stamps) > 3
    assert all(stamps)
    times = [float(stamp[1]) for stamp in stamps if stamp]
    assert times == sorted(times)
    assert 0 < times[0] < 20


def test_milestones_of_the_boot_are_told_with_v() -> None:
    typed = b"echo Run /init as init process\npoweroff\n"
    result = pyvmm("run", "--mem", "16M", "--timeout", "20", "-v", typed=typed)
    assert re.search(
        rb"^pyvmm: [0-9]+\.[0-9] s, [1-9][0-9]* exits: Run /init as init process$",
        result.stderr,
        re.MULTILINE,
    )
    assert b"pyvmm: " not in result.stdout


# Signals.


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT], ids=lambda n: n.name
)
def test_signal_ends_the_run(number: signal.Signals) -> None:
    with running("run", "--mem", "16M") as guest:
        guest.wait_for(PROMPT)
        guest.process.send_signal(number)
        assert guest.end() == (128 + number, f"pyvmm: ended by {number.name}\n")


def test_second_signal_while_the_run_ends_is_no_trouble(guests: Path) -> None:
    # Nobody reads: there is something to wait for at the end.
    arguments = ["run", "--kernel", str(guests / "pio_loop.elf"), "--mem", "16M"]
    with running(*arguments) as guest:
        guest.wait_for(b"U")
        for _ in range(20):
            guest.process.send_signal(signal.SIGTERM)
        assert guest.end() == (128 + signal.SIGTERM, "pyvmm: ended by SIGTERM\n")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT], ids=lambda n: n.name)
def test_signal_that_we_were_started_to_ignore_stays_ignored(number: signal.Signals) -> None:
    def ignore() -> None:  # as nohup(1) does, and a shell for a job in the background
        signal.signal(number, signal.SIG_IGN)

    with running("run", "--mem", "16M", stdin=subprocess.PIPE, preexec_fn=ignore) as guest:
        guest.wait_for(PROMPT)
        guest.process.send_signal(number)
        guest.type(b"exit 3\n")
        assert guest.end()[0] == 3


def test_run_started_with_all_signals_blocked_ends(guests: Path) -> None:
    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    arguments = ["run", "--kernel", str(guests / "spin.elf"), "--mem", "16M", "--timeout", "0.2"]
    assert pyvmm(*arguments, preexec_fn=block).returncode == 124


def test_signal_at_any_moment_of_the_start_ends_it() -> None:
    # From before Python runs to after the guest does. A signal before there is anything to tidy up
    # is left to do what it does.
    for number in range(24):
        with running("run", "--mem", "16M") as guest:
            time.sleep(number * 0.006)
            guest.process.send_signal(signal.SIGTERM)
            status, errors = guest.end()
            assert (status, errors) in (
                (-signal.SIGTERM, ""),
                (128 + signal.SIGTERM, "pyvmm: ended by SIGTERM\n"),
            )


# Standard input and output that are no use.


def test_end_of_input_is_not_the_end_of_the_run() -> None:
    result = pyvmm("run", "--mem", "16M", "--timeout", "0.5")
    assert (result.returncode, result.stdout[-2:]) == (124, b"> ")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
def test_closed_standard_file_is_no_reason_to_fail(closed: str) -> None:
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "run", "--mem", "16M"]
    result = subprocess.run([*shell, "--timeout", "0.3"], capture_output=True, cwd="/", check=False)
    assert (result.returncode, last_line(result)[:15]) == (124, "pyvmm: timeout:")


def test_closed_standard_error_leaves_standard_output_to_the_guest() -> None:
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh", *COMMAND, "run", "--mem", "16M"]
    result = subprocess.run(shell, input=b"exit 3\n", stdout=subprocess.PIPE, cwd="/", check=False)
    assert result.returncode == 3
    assert b"pyvmm:" not in result.stdout


def test_reader_that_leaves_does_not_end_the_run() -> None:
    with running("run", "--mem", "16M", stdin=subprocess.PIPE) as guest:
        guest.wait_for(PROMPT)
        assert guest.process.stdout is not None
        guest.process.stdout.close()
        guest.process.stdout = None
        guest.type(b"hello\nexit 7\n")
        assert guest.end() == (7, "pyvmm: the guest exited with 7\n")


def test_full_disk_is_told_and_does_not_end_the_run() -> None:
    with open("/dev/full", "wb") as full:
        result = pyvmm("run", "--mem", "16M", typed=b"exit 7\n", stdout=full)
    assert result.returncode == 7
    assert result.stderr.decode().splitlines() == [
        "pyvmm: console output was lost: standard output: No space left on device",
        "pyvmm: the guest exited with 7",
    ]


def test_stalled_reader_holds_up_nothing_and_fills_no_memory(guests: Path) -> None:
    arguments = ["run", "--kernel", str(guests / "pio_loop.elf"), "--mem", "16M", "--timeout", "4"]
    with running(*arguments) as guest:
        guest.wait_for(b"U")
        errors = guest.process.stderr
        assert errors is not None
        peak = 0
        while guest.process.poll() is None:
            status = Path(f"/proc/{guest.process.pid}/status").read_text(errors="replace")
            found = re.search(r"VmHWM:\s+(\d+) kB", status)
            peak = max(peak, int(found[1]) if found else 0)
            time.sleep(0.1)
        said = errors.read().decode()
    assert guest.process.returncode == 124
    assert re.match(r"pyvmm: \d+ bytes of console output were not read, and lost\n", said)
    assert peak * 1024 < 40 * MiB, "16 MiB of it may be the guest's, 18 MiB are Python and we"


def test_messages_do_not_mix_with_the_guests_output() -> None:
    result = pyvmm("run", "--mem", "16M", "-v", typed=b"exit 0\n")
    assert b"pyvmm: " not in result.stdout
    messages = result.stderr.decode()
    assert f"{embedded.path('kernel.elf')}: ELF, entered by pvh at 0x" in messages
    assert re.search(r"^  0x\w+\.\.0x\w+  start_info$", messages, re.MULTILINE)
    assert re.search(r"^pyvmm: \d+ exits to userspace$", messages, re.MULTILINE)


def test_many_machines_run_at_once() -> None:
    processes = [
        subprocess.Popen(
            [*COMMAND, "run", "--mem", "16M"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
        for _ in range(8)
    ]
    try:
        for status, process in enumerate(processes):
            process.communicate(b"exit %d\n" % status, timeout=30)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == list(range(8))
