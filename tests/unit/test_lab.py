"""scripts/lab without its QEMU: a stand-in runs the command on this machine, or fails to."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.errors import ConfigError, HostError
from pyvmm.lab.image import LabImage, load_order
from pyvmm.lab.machine import STATUS_LAB_FAILED, Job, run_in_lab

IMAGE = LabImage("kernel", "initramfs")

# Finds the exchange directory among its arguments, as QEMU does, and does there what init.sh does.
FINDS_EXCHANGE = """\
#!/bin/sh
for word; do
    case $word in local,id=exchange,*) word=${word#*path=}; exchange=${word%%,*} ;; esac
done
echo $$ >'@directory@/pid'
echo "$exchange" >'@directory@/exchange'
"""
RUNS_COMMAND = FINDS_EXCHANGE + 'sh "$exchange/command" 2>&1\necho $? >"$exchange/status"\n'
DIES = FINDS_EXCHANGE + 'echo "cannot allocate memory" >&2\nexit 1\n'


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-in is, first on PATH, and where it tells its pid and exchange directory."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def stand_in(directory: Path, script: str) -> None:
    qemu = directory / "qemu-system-x86_64"
    qemu.write_text(script.replace("@directory@", str(directory)))
    qemu.chmod(0o755)


def job(*command: str, timeout_s: float = 20, write_dir: str | None = None) -> Job:
    return Job(command=command, timeout_s=timeout_s, memory="2G", write_dir=write_dir)


def nothing_is_left(directory: Path) -> bool:
    """Whether the process and the exchange directory are gone."""
    pid = int((directory / "pid").read_text())
    exchange = (directory / "exchange").read_text().strip()
    return not os.path.exists(f"/proc/{pid}") and not os.path.exists(exchange)


def test_status_and_output_are_the_commands(
    directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stand_in(directory, RUNS_COMMAND)
    assert run_in_lab(IMAGE, job("sh", "-c", "echo out; echo err >&2; exit 7")) == 7
    assert capfd.readouterr().out == "out\nerr\n"
    assert nothing_is_left(directory)


def test_command_has_the_callers_directory_and_environment(
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    stand_in(directory, RUNS_COMMAND)
    there = tmp_path / "a place; with 'quotes'"
    there.mkdir()
    monkeypatch.chdir(there)
    monkeypatch.setenv("ODD", "a\nb $HOME")
    script = "import os, sys; print(os.getcwd(), [os.environ['ODD'], os.environ['PYVMM_LAB']])"
    assert run_in_lab(IMAGE, job("python3", "-c", script)) == 0
    assert capfd.readouterr().out == f"{there} ['a\\nb $HOME', '1']\n"


def test_time_that_is_over_is_told(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stand_in(directory, FINDS_EXCHANGE + "exec sleep 1000\n")
    assert run_in_lab(IMAGE, job("true", timeout_s=0.5)) == STATUS_LAB_FAILED == 125
    assert "still running after 0.5 s" in capfd.readouterr().err
    assert nothing_is_left(directory)


def test_machine_that_dies_is_told_with_its_last_lines(directory: Path) -> None:
    stand_in(directory, DIES)
    with pytest.raises(HostError, match=r"QEMU ended with 1.*\n  cannot allocate memory"):
        run_in_lab(IMAGE, job("true"))
    assert nothing_is_left(directory)


def test_log_is_asked_for_but_was_never_begun(directory: Path, tmp_path: Path) -> None:
    stand_in(directory, RUNS_COMMAND)
    assert run_in_lab(IMAGE, job("true")._replace(log=str(tmp_path / "log"))) == 0
    assert not (tmp_path / "log").exists()


def test_missing_qemu_is_told_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match=r"apt-get install .*qemu-system-x86"):
        run_in_lab(IMAGE, job("true"))


def test_write_directory_that_is_none_is_refused(directory: Path) -> None:
    stand_in(directory, RUNS_COMMAND)
    with pytest.raises(ConfigError, match="/nowhere is not a directory"):
        run_in_lab(IMAGE, job("true", write_dir="/nowhere"))


@contextlib.contextmanager
def lab_in_a_process(
    directory: Path, *, then: str = "", ignored: signal.Signals | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A lab whose machine has begun and does not end by itself.

    ``then``: what the process does when that has ended. ``ignored``: it is started so.
    """
    stand_in(directory, FINDS_EXCHANGE + "echo started\nexec sleep 1000\n")
    program = f"""if True:
        import os, signal, sys
        from pyvmm.lab.image import LabImage
        from pyvmm.lab.machine import Job, run_in_lab
        status = run_in_lab(LabImage("", ""), Job(["true"], 60, "2G"))
        {then}
        sys.exit(status)
    """

    def ignore() -> None:
        if ignored is not None:
            signal.signal(ignored, signal.SIG_IGN)

    with subprocess.Popen(
        [sys.executable, "-P", "-c", program],
        env={**os.environ, "TMPDIR": str(directory)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        preexec_fn=ignore,
    ) as lab:
        assert lab.stdout is not None
        assert lab.stdout.readline() == b"started\n"
        yield lab


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_all_and_leaves_nothing(directory: Path, number: signal.Signals) -> None:
    with lab_in_a_process(directory) as lab:
        lab.send_signal(number)
        assert lab.wait(20) == 128 + number
    assert nothing_is_left(directory)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_second_signal_when_all_is_over_changes_nothing(
    directory: Path, number: signal.Signals
) -> None:
    then = f"os.kill(os.getpid(), signal.{number.name})"
    with lab_in_a_process(directory, then=then) as lab:
        lab.send_signal(number)
        assert lab.wait(20) == 128 + number


def test_signal_that_we_were_started_to_ignore_stays_ignored(directory: Path) -> None:
    with lab_in_a_process(directory, ignored=signal.SIGHUP) as lab:
        lab.send_signal(signal.SIGHUP)
        lab.send_signal(signal.SIGTERM)
        assert lab.wait(20) == 128 + signal.SIGTERM


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv(1) is not on this machine")
def test_machine_does_not_outlive_a_killed_lab(directory: Path) -> None:
    with lab_in_a_process(directory) as lab:
        lab.kill()
        # It ends when nobody holds it open any more, neither the lab nor the machine.
        assert lab.stdout is not None
        assert lab.stdout.read() == b""


def modinfo(depends: str) -> bytes:
    """A module's .modinfo, as include/linux/moduleparam.h lays it out, amid other bytes."""
    return b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"


def test_modules_come_after_what_they_depend_on() -> None:
    modules = {
        "kvm_amd": modinfo("kvm,ccp"),
        "kvm": modinfo("irq-bypass"),
        "irq_bypass": modinfo(""),
        "ccp": modinfo(""),
        "unwanted": modinfo(""),
    }
    assert load_order(modules, ("ccp", "kvm_amd")) == ["ccp", "irq_bypass", "kvm", "kvm_amd"]


def test_missing_module_is_named() -> None:
    with pytest.raises(KeyError, match="ccp"):
        load_order({"kvm_amd": modinfo("ccp")}, ("kvm_amd",))
