"""How driver.py is called: for the tests, and for scripts/fuzz."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

DRIVER = Path(__file__).with_name("driver.py")

RSS_LIMIT_MB = 512
TIMEOUT_S = 10


def fuzz_command(
    name: str, directory: Path, *options: str, module: str = "fuzz.targets"
) -> list[str]:
    """The command that fuzzes target ``name`` of ``module``, its seeds written to ``directory``.

    Inputs that reach new code are collected in ``corpus`` there, and used the next time. One that
    breaks the parser, or takes too long or too much memory, is put beside it: ``crash-...``,
    ``timeout-...``, ``oom-...``.
    """
    corpus, seeds = directory / "corpus", directory / "seeds"
    for folder in (corpus, seeds):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(importlib.import_module(module).TARGETS[name].seeds):
        (seeds / str(number)).write_bytes(seed)
    limits = [f"-rss_limit_mb={RSS_LIMIT_MB}", f"-timeout={TIMEOUT_S}"]
    prefix = f"-artifact_prefix={directory}{os.sep}"
    return [*_driver(module, name), *limits, prefix, *options, str(corpus), str(seeds)]


def replay_command(name: str, file: str, *, module: str = "fuzz.targets") -> list[str]:
    """The command that runs target ``name`` once, with what is in ``file``."""
    return [*_driver(module, name), file]


def _driver(module: str, name: str) -> list[str]:
    return [sys.executable, str(DRIVER), module, name]
