"""Each parser is fuzzed for a moment; `scripts/fuzz` does it for as long as is wanted.

Any bytes give a result or an error of one line that blames them: no other exception, no hang, no
memory out of all proportion. The seed of what is random is fixed, so that inputs are the same in
each run, as far as it gets.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import re
import subprocess
from pathlib import Path

import pytest
from fuzz import faulty_targets
from fuzz.campaign import fuzz_command, replay_command
from fuzz.targets import TARGETS

from pyvmm.units import PAGE_SIZE, MiB

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None and os.environ.get("CI") != "true",
    reason="atheris is not installed (pip install 'pyvmm[fuzz]')",
)

RUNS = 2000
SECONDS = 4


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_accepted(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)


@needs_atheris
@pytest.mark.parametrize("name", TARGETS)
def test_parser_returns_or_blames_its_input(name: str, tmp_path: Path) -> None:
    bounds = (f"-runs={RUNS}", f"-max_total_time={SECONDS}")
    done = run(fuzz_command(name, tmp_path, "-seed=1", *bounds))
    assert done.returncode == 0, done.stderr[-5000:]
    runs = re.search(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
    assert runs
    assert int(runs[1]) > 2 * len(TARGETS[name].seeds)
    assert "INFO: Instrumenting pyvmm.loader" in done.stderr


@needs_atheris
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("raise_key_error", "crash", "KeyError: 'B'"),
        ("blame_the_host", "crash", "BrokenContractError: the machine is blamed, not the bytes"),
        ("say_two_lines", "crash", "BrokenContractError: the message is not of one line"),
        ("hang", "timeout", "ERROR: libFuzzer: timeout"),
        ("hoard", "oom", "ERROR: libFuzzer: out-of-memory"),
    ],
)
def test_fault_is_found(name: str, kind: str, message: str, tmp_path: Path) -> None:
    module = faulty_targets.__name__
    limits = ["-timeout=2", "-rss_limit_mb=256"]
    done = run(fuzz_command(name, tmp_path, *limits, "-max_total_time=60", module=module))
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
    (found,) = tmp_path.glob(f"{kind}-*")
    assert found.read_bytes()[:1] == b"B"


@needs_atheris
def test_found_input_is_run_again_by_its_file(tmp_path: Path) -> None:
    found = tmp_path / "crash"
    found.write_bytes(b"B")
    done = run(replay_command("raise_key_error", str(found), module=faulty_targets.__name__))
    assert done.returncode != 0
    assert "KeyError: 'B'" in done.stderr + done.stdout


@needs_atheris
def test_memory_of_the_caller_does_not_count(tmp_path: Path) -> None:
    with mmap.mmap(-1, 300 * MiB) as held:
        for start in range(0, len(held), PAGE_SIZE):
            held[start] = 1
        done = run(fuzz_command("cmdline", tmp_path, "-max_total_time=3", "-rss_limit_mb=200"))
    assert done.returncode == 0, done.stderr[-5000:]
