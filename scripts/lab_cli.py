"""The command line of scripts/lab."""

from __future__ import annotations

import argparse
import os
import sys

from pyvmm.cli.fetch import progress_on_stderr
from pyvmm.errors import PyvmmError
from pyvmm.fetch import fetch_kernel, fetch_package_file
from pyvmm.lab.image import prepare_image
from pyvmm.lab.machine import STATUS_LAB_FAILED, Job, run_in_lab

_DESCRIPTION = """\
Run a command, or the project's tests, in a machine with a hardware-style /dev/kvm: QEMU emulates
AMD's SVM, a Debian kernel in it has kvm-amd. The command sees this machine's files; what it writes
is gone afterwards, but in the directory given with --write. See docs/lab.md.
"""

_EPILOG = """\
exit status: the command's; 125 if its time was over or the lab failed; 128+N after signal N

examples:
  scripts/lab run -- pyvmm doctor
  scripts/lab run --write out -- sh -c 'pyvmm run --kernel debian >out/console'
  scripts/lab test -x -k serial
"""

# The kernels that the tests boot: they are fetched here, as the lab has no network.
TEST_KERNELS = (
    "debian:6.1-cloud",
    "debian:6.1-generic",
    "debian:6.12-cloud",
    "debian:6.12-generic",
    "linux:tiny",
)

# The same of single files: a package, and a regular expression for the file's path in it.
TEST_FILES = (
    ("grub-invaders", "boot/invaders.exec"),
    ("multiboot", "usr/lib/multiboot/examples/kernel"),
    ("systemd-boot-efi", "usr/lib/systemd/boot/efi/linuxx64.efi.stub"),
    ("xen-hypervisor-4.17-amd64", r"boot/xen-.*-amd64\.gz"),
)

# The tests that say something about a KVM: the others pass anywhere, and are slow in the lab.
_TESTS = ("-m", "not host and not long", "tests/kvm", "tests/boot", "tests/lab")

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main() -> int:
    """Do what the command line says and return the exit status."""
    arguments, command = _split(sys.argv[1:])
    parser = _parser()
    args, extra = parser.parse_known_args(arguments)
    try:
        if args.action == "run":
            if extra or not command:
                parser.error("expected: run [OPTION]... -- COMMAND [ARGUMENT]...")
            return _run(args, command)
        return _test(args, extra + command)
    except PyvmmError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2 if error.exit_status == 2 else STATUS_LAB_FAILED


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before the first ``--``, and what after it."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/lab",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="run|test")
    run = actions.add_parser(
        "run", help="run a command", usage="%(prog)s [OPTION]... -- COMMAND...", allow_abbrev=False
    )
    run.add_argument("--write", metavar="DIR", help="a directory that the command can write to")
    run.add_argument("--log", metavar="FILE", help="a file for the log of the lab's own kernel")
    test = actions.add_parser(
        "test",
        help="run the tests that are about a KVM, or those that are named",
        usage="%(prog)s [OPTION]... [--] [PYTEST ARGUMENT]...",
        allow_abbrev=False,
    )
    test.add_argument(
        "--write",
        metavar="DIR",
        default=os.path.join(_ROOT, "build", "lab"),
        help="where junit.xml and kernel.log, the lab's own, are put (default: build/lab)",
    )
    for action, timeout_s in ((run, 900), (test, 1800)):
        action.add_argument(
            "--timeout",
            type=float,
            default=timeout_s,
            metavar="SECONDS",
            help="end it after so long, with status 125 (default: %(default)s)",
        )
        action.add_argument(
            "--mem",
            default="2G",
            metavar="SIZE",
            help="the lab's memory, as QEMU takes it (default: %(default)s)",
        )
    return parser


def _run(args: argparse.Namespace, command: list[str]) -> int:
    job = Job(
        command=command,
        timeout_s=args.timeout,
        memory=args.mem,
        write_dir=args.write,
        log=args.log,
    )
    return run_in_lab(prepare_image(progress_on_stderr()), job)


def _test(args: argparse.Namespace, pytest_arguments: list[str]) -> int:
    """Run pytest over the tests that are for the lab, or over those that are named."""
    for name in TEST_KERNELS:
        fetch_kernel(name, progress=progress_on_stderr())
    for package, member in TEST_FILES:
        fetch_package_file(package, member, progress=progress_on_stderr())
    args.write = os.path.abspath(args.write)
    os.makedirs(args.write, exist_ok=True)
    args.log = os.path.join(args.write, "kernel.log")
    os.chdir(_ROOT)
    command = [sys.executable, "-m", "pytest", f"--junitxml={args.write}/junit.xml"]
    if not any(os.path.exists(argument.split("::")[0]) for argument in pytest_arguments):
        command += _TESTS
    return _run(args, command + pytest_arguments)
