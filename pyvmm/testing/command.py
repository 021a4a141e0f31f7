"""One command in a guest of its own: `pyvmm run ... -- COMMAND`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pyvmm.console import Console
from pyvmm.machine import Machine
from pyvmm.testing.agent import Agent, Completed
from pyvmm.testing.outcomes import GuestTimeout, failure_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.config import MachineConfig

# How long a guest may take to its agent's first word.
BOOT_TIMEOUT_S = 600.0
_LOOK_S = 0.25


def run_in_guest(
    config: MachineConfig,
    command: str,
    stdin: bytes,
    console_output: Callable[[bytes], object],
    *,
    timeout_s: float | None = None,
    on_built: Callable[[Machine], object] = lambda machine: None,
) -> Completed:
    """Boot ``config``, run the shell ``command`` in the guest by its agent, and end the guest.

    ``config.initrd`` has the agent (testing/initramfs.py). ``console_output`` gets the console's
    bytes, ``on_built`` the machine before it runs. Raises GuestFailure or VmmError if the command
    did not get to its end.
    """

    def wait(port: Console, waiting_for: str, deadline: float | None) -> bytes:
        while not (data := port.read(_LOOK_S)):
            result = machine.wait(0)
            if result is not None:
                raise failure_of(result, waiting_for, result.report)
            if deadline is not None and time.monotonic() > deadline:
                raise GuestTimeout(f"{waiting_for} did not come in time")
        return data

    # The agent's port is made after the machine that writes to it.
    with Machine(config, console_output, [lambda data: port.take(data)]) as machine:
        on_built(machine)
        port = Console(machine.serial_inputs[1])
        machine.start()
        agent = Agent(port, wait)
        agent.wait_until_ready(BOOT_TIMEOUT_S if timeout_s is None else timeout_s)
        return agent.run(command, stdin=stdin, timeout_s=timeout_s)
