"""One run of the lab's machine: QEMU with an emulated SVM, from its start to its last trace.

The host and the machine share a directory, made for the run: the command goes in, its exit status
comes out (init.sh has the list). What the command prints comes over the second serial port, which
is QEMU's standard output; the log of the machine's kernel goes into a file of that directory, and
is shown if the machine fails.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.errors import ConfigError, HostError
from pyvmm.lab.monitor import describe_processor
from pyvmm.loader.files import write_whole
from pyvmm.signals import Signalled, signals_raise
from pyvmm.terminal import RawTerminal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pyvmm.lab.image import LabImage

STATUS_LAB_FAILED = 125
"""The time was over, or the lab itself failed. As of docker(1), env(1) and others: not a status
that commands end with."""

_QEMU = "qemu-system-x86_64"

# pku, la57: a guest's kernel would be offered them, and KVM here cannot give them.
# erms, fsrm: memory would be copied and cleared by `rep movsb`, which TCG does a byte at a time,
#   and where code has been run before (a guest's kernel) each byte looks for translations to drop:
#   to copy 50 MB there took 2 s. 14 boots in turns took 104 s, and take 72 s without.
# family: at TCG's own, 0Fh, generic kernels look for an AGP bridge on 256 buses: 33,000 exits, 3 s
#   (arch/x86/kernel/aperture_64.c). At 14h it does not. A boot takes 3.9 s of the host's CPU at
#   0Fh, 3.4 s at 14h, and 5.9 s at 19h, whose flaws a guest's kernel has to work around.
_CPU = "max,pku=off,la57=off,erms=off,fsrm=off,family=20,model=2"

_LAST_LINES = 20


class Job(NamedTuple):
    """A command to be run in the lab."""

    command: Sequence[str]
    timeout_s: float
    memory: str
    """As QEMU takes it: 2048 (MiB), 2G."""
    write_dir: str | None = None
    """The one directory of the host that the command may write to."""
    environment: Mapping[str, str] = {}
    """Variables besides the caller's own."""
    log: str | None = None
    """Where to put the log of the machine's kernel, and at a timeout its processor's state."""


def run_in_lab(image: LabImage, job: Job) -> int:
    """Run the job and return what scripts/lab shall end with.

    That is the command's exit status; 125 if the time was over, 128+N after signal N.
    Raises HostError if there is no machine to run it in, or it did not do its part.
    """
    if shutil.which(_QEMU) is None:
        raise HostError(
            f"{_QEMU} is not on this machine; install it with "
            "`apt-get install --no-install-recommends qemu-system-x86` (as root)"
        )
    try:
        with signals_raise(), tempfile.TemporaryDirectory(prefix="pyvmm-lab-") as exchange:
            _write_job(exchange, job)
            with _started(_qemu_command(image, job, exchange), exchange) as qemu:
                in_time = _pump(qemu, job.timeout_s)
                if not in_time:
                    _log_processor(exchange)
            if job.log is not None:
                _copy_log(exchange, job.log)
            if in_time:
                return _status(exchange, qemu.returncode)
    except Signalled as signalled:
        return 128 + signalled.number
    print(
        f"lab: still running after {job.timeout_s:g} s, so it was ended; --timeout gives it longer"
        + (f"; the state of its processor is in {job.log}" if job.log else ""),
        file=sys.stderr,
    )
    return STATUS_LAB_FAILED


# What goes in.


def _write_job(exchange: str, job: Job) -> None:
    """Put into the exchange directory what init.sh looks for there."""
    files = {"command": _script(job)}
    if _has_terminal():
        columns, lines = os.get_terminal_size(1)
        files["terminal"] = f"{lines} {columns}\n"
    if job.write_dir is not None:
        if not os.path.isdir(job.write_dir):
            raise ConfigError(f"{job.write_dir} is not a directory; expected one to be written to")
        files["write"] = f"{os.path.realpath(job.write_dir)}\n"
    for name, text in files.items():
        with open(os.path.join(exchange, name), "wb") as file:
            file.write(os.fsencode(text))


def _has_terminal() -> bool:
    """Whether the command is to have the user's terminal. Without one it reads nothing."""
    return os.isatty(0) and os.isatty(1)


def _script(job: Job) -> str:
    """A shell script that runs the command as if it were run here: directory, environment."""
    environment = {
        **os.environ,
        # The python that runs this script, with its packages, is the lab's python.
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', os.defpath)}",
        "TMPDIR": "/run/tmp",
        "PYVMM_LAB": "1",
        **job.environment,
    }
    words = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *job.command]
    return f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(words)}\n"


# The machine.


def tsc_khz() -> int:
    """The frequency of this machine's TSC, which is that of the lab's.

    A kernel that measures it on a busy host gets it wrong. /proc/cpuinfo has it: bogomips is twice
    the TSC's MHz, as Linux takes its delay loop from there (init/calibrate.c, lpj_fine).
    """
    with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        for line in cpuinfo:
            name, _, value = line.partition(":")
            if name.strip() == "bogomips":
                return round(float(value) * 500)
    raise HostError(
        "/proc/cpuinfo has no bogomips; the lab runs on Linux on x86-64, as its machine runs this "
        "one's programs"
    )


def _qemu_command(image: LabImage, job: Job, exchange: str) -> list[str]:
    # One processor: with two, TCG's SVM crashed or froze now and then.
    # A periodic tick, against a rare freeze whose cause is not proven. With the usual one-shot
    # timer this machine was seen dead a few times, mostly with two vCPUs on a busy host; with the
    # tick it never was, but 80 boots without it were fine as well. What would fit, from reading
    # QEMU's source: VMRUN sets a bit of the processor's interrupt_request without the lock under
    # which devices set theirs (helper_vmrun in target/i386/tcg/sysemu/svm_helper.c), and may so
    # wipe out the timer's; after a one-shot timer's there is no next interrupt to make up for it.
    kernel_cmdline = (
        "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check rcupdate.rcu_expedited=1 "
        "nohz=off highres=off "
        f"tsc=reliable tsc_early_khz={tsc_khz()}"
    )
    command = [
        *(_QEMU, "-M", "q35", "-accel", "tcg", "-cpu", _CPU),
        *("-smp", "1", "-m", job.memory, "-nodefaults", "-display", "none", "-no-reboot"),
        *("-kernel", image.kernel, "-initrd", image.initramfs, "-append", kernel_cmdline),
        *("-chardev", _option("file,id=log", path=os.path.join(exchange, "kernel.log"))),
        *("-device", "isa-serial,chardev=log,index=0"),
        *("-chardev", "stdio,id=out,signal=off", "-device", "isa-serial,chardev=out,index=1"),
        *("-qmp", _option("unix:" + os.path.join(exchange, "monitor"), server="on", wait="off")),
    ]
    shares = [("host", "/", "on"), ("exchange", exchange, "off")]
    if job.write_dir is not None:
        shares.append(("write", os.path.realpath(job.write_dir), "off"))
    for tag, path, readonly in shares:
        share = _option(
            f"local,id={tag},security_model=none,multidevs=remap", path=path, readonly=readonly
        )
        command += ["-fsdev", share, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    return command


def _option(head: str, **values: str) -> str:
    """An option's argument as QEMU takes it: a comma in a value is written twice."""
    return ",".join([head, *(f"{key}={value.replace(',', ',,')}" for key, value in values.items())])


@contextlib.contextmanager
def _started(command: list[str], exchange: str) -> Iterator[subprocess.Popen[bytes]]:
    """QEMU, which does not outlive the context. Nor this process, where setpriv(1) is."""
    if (setpriv := shutil.which("setpriv")) is not None:
        command = [setpriv, "--pdeathsig", "KILL", *command]
    with (
        open(os.path.join(exchange, "qemu.log"), "wb") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE if _has_terminal() else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for us to handle, or for the command
        ) as qemu,
    ):
        try:
            yield qemu
        finally:
            qemu.kill()


# What comes out.


def _pump(qemu: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Carry bytes until QEMU closes its output; False if that was not within the time."""
    deadline = time.monotonic() + timeout_s
    assert qemu.stdout is not None
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        selector.register(qemu.stdout, selectors.EVENT_READ)
        if qemu.stdin is not None:
            selector.register(0, selectors.EVENT_READ)
            stack.enter_context(RawTerminal(0))
        while (left_s := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                data = os.read(key.fd, 0x1_0000)
                if key.fd == 0 and qemu.stdin is not None:
                    _write_all(qemu.stdin.fileno(), data)
                    if not data:
                        selector.unregister(0)
                elif data:
                    _write_all(1, data)
                else:
                    qemu.wait()
                    return True
    return False


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _log_processor(exchange: str) -> None:
    """Add to the kernel's log where the processor is, for whoever wonders why it took so long."""
    with open(os.path.join(exchange, "kernel.log"), "a", encoding="utf-8") as log:
        log.write(describe_processor(os.path.join(exchange, "monitor")))


def _copy_log(exchange: str, path: str) -> None:
    """Put the log where the user wants it. Raises HostError or ConfigError if that cannot be."""
    with contextlib.suppress(FileNotFoundError):  # QEMU may not even have begun one
        write_whole(path, Path(exchange, "kernel.log").read_bytes())


def _status(exchange: str, qemu_status: int) -> int:
    """The exit status that the command left. Raises HostError if there is none."""
    with (
        contextlib.suppress(FileNotFoundError, ValueError),
        open(os.path.join(exchange, "status"), encoding="ascii") as file,
    ):
        return int(file.read())
    last_lines: list[str] = []
    for name in ("qemu.log", "kernel.log"):
        with (
            contextlib.suppress(FileNotFoundError),
            open(os.path.join(exchange, name), encoding="utf-8", errors="replace") as log,
        ):
            last_lines += log.read().splitlines()[-_LAST_LINES:]
    raise HostError(
        f"the machine ended without the command's exit status (QEMU ended with {qemu_status}); "
        "its last lines:" + "".join(f"\n  {line}" for line in last_lines)
    )
