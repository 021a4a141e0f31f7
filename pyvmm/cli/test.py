"""``pyvmm test``: boot a kernel, run a script in it, and say what came of it, as bisection asks.

`git bisect run` takes 0 as good, 1 to 124 as bad, 125 as "cannot be told", and stops at 126 and
above (git-bisect(1)). So 125 is for what is no fault of the kernel's.
"""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from pyvmm.cli import run as cli_run
from pyvmm.cli.messages import complain, tell
from pyvmm.errors import ConfigError, ImageError, KernelImageError, PyvmmError
from pyvmm.machine import Machine
from pyvmm.outcome import Outcome, RunResult
from pyvmm.terminal import ConsoleWriter, guard_standard_fds

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "boot a kernel and run a script in it, for git bisect run and for CI"

_EPILOG = """\
The script runs in a busybox userspace, on the guest's console, which is standard output. Its exit
status decides.

exit status, as `git bisect run` has it: 0 the script ended with 0; 1 to 124 bad: the script's own
status, or 1 if that is above, and 1 too if the kernel panicked, hung until the timeout, halted,
reset or powered off before the script's end; 125 cannot be told: the script ended with 125, or
this host or KVM failed; 2 a mistake in what was given

example:
  git bisect run sh -c 'make -s bzImage || exit 125
    pyvmm test --kernel arch/x86/boot/bzImage --init check.sh --timeout 120'
"""

STATUS_BAD = 1
STATUS_CANNOT_TELL = 125

_DEFAULT_TIMEOUT_S = 300.0
_DEFAULT_CMDLINE = "console=ttyS0 loglevel=5 reboot=k panic=-1"
_FLUSH_PATIENCE_S = 2.0


def configure(parser: ArgumentParser) -> None:
    """Add this command's options."""
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("--init", metavar="SCRIPT", required=True, help="the shell script to run in the guest")
    add(
        "--add",
        metavar="SRC[:DST]",
        action="append",
        default=[],
        help="a file or directory for the guest, as `pyvmm initramfs` has it",
    )
    cli_run.add_machine_options(parser, _DEFAULT_TIMEOUT_S)


def run(args: Namespace) -> int:
    """Boot, run the script, and return what came of it."""
    from pyvmm.cli.initramfs import split_argument
    from pyvmm.loader.files import read_regular
    from pyvmm.testing.initramfs import make_initramfs

    guard_standard_fds()
    read_regular(args.init, "a shell script", ImageError)  # a mistake is told before a long boot
    config = cli_run.machine_config(args)
    if config.initrd is not None:
        raise ConfigError("--initrd was given; the script runs in an initramfs of ours; use --add")
    if config.cmdline is None:
        config = config._replace(cmdline=_DEFAULT_CMDLINE)
    config.check()
    files = [split_argument(argument) for argument in args.add]
    with tempfile.TemporaryDirectory(prefix="pyvmm-") as directory:
        try:
            initrd = make_initramfs(
                os.path.join(directory, "initramfs"), script=args.init, extra_files=files
            )
            config = config._replace(
                kernel=cli_run.kernel_path(args.kernel), initrd=initrd, reboot=False
            )
            writer = ConsoleWriter(1)
            with (
                Machine(config, writer.write) as machine,
                cli_run.ended_by_signals(machine.stop, []),
            ):
                cli_run.tell_tuning(machine)
                result = machine.run(timeout_s=args.timeout)
                writer.close(_FLUSH_PATIENCE_S)
        except (ConfigError, KernelImageError):
            raise
        except (PyvmmError, OSError) as error:
            complain(error)
            return STATUS_CANNOT_TELL
    if result.report:
        tell(result.report)
    tell(f"pyvmm: {result.summary}")
    return verdict(result)


def verdict(result: RunResult) -> int:
    """What `git bisect run` is to be told of a run that ended with ``result``."""
    match result.outcome:
        case Outcome.GUEST_EXIT:
            status = result.exit_status
            return status if status <= STATUS_CANNOT_TELL else STATUS_BAD
        case Outcome.ERROR | Outcome.KVM_FAILURE | Outcome.EMULATION_FAILURE:
            return STATUS_CANNOT_TELL
        case Outcome.SIGNAL:
            return result.exit_status  # above 127: git stops
        case _:
            return STATUS_BAD
