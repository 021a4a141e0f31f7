"""What a stock Linux is told on its command line where KVM has no hardware under it.

There each instruction of kernel mode is emulated, a thousand times slower than user mode, and what
takes no time elsewhere takes minutes: REP MOVSB byte by byte, tests and tables that nobody will
ask for. But for one thing none of it is a matter of right or wrong: ptp_kvm_init makes a
hypercall, which never returns there.

    line from the user + the parameters for its version that
                             the user has said nothing about, and
                             there is room for, before any "--"

Left out: what takes a device away that a machine of ours has. ``acpi=off`` would be faster, and the
guest could not power itself off.

Specification: Documentation/admin-guide/kernel-parameters.txt (6.12), and per parameter as noted.
"""

from __future__ import annotations

from typing import NamedTuple

from pyvmm.errors import CmdlineError
from pyvmm.loader.cmdline_builder import Cmdline
from pyvmm.loader.linux_version import Version


class Tuned(NamedTuple):
    """A command line, and what of it was added."""

    cmdline: str
    added: tuple[str, ...] = ()
    ticks_by_pit: bool = False
    """Whether the kernel has its ticks from the PIT, and does not keep its time by them."""


# Features whose use costs emulated instructions, or ends in one that KVM cannot emulate: their
# names in /proc/cpuinfo, and their numbers (arch/x86/include/asm/cpufeatures.h: 32 * word + bit).
_FEATURES = {
    "erms": 9 * 32 + 9,
    "fsrm": 18 * 32 + 4,
    "smep": 9 * 32 + 7,
    "smap": 9 * 32 + 20,
    "xsavec": 10 * 32 + 1,
    "xsaves": 10 * 32 + 3,
    "ssse3": 4 * 32 + 9,
    "sse4_1": 4 * 32 + 19,
    "pclmulqdq": 4 * 32 + 1,
    "aes": 4 * 32 + 25,
}
_SEVERAL_FEATURES_SINCE = (5, 10)  # before, clearcpuid= took one number
_FEATURE_NAMES_SINCE = (5, 19)

# The first makes a hypercall. The only work of the others is to test themselves, or to prepare what
# a short-lived guest does not use. Those that a kernel does not have do no harm.
_INITCALLS = (
    "ptp_kvm_init",
    "jent_mod_init",  # gathers entropy, for its test, from how much time goes by: 6.12, 80 s
    "tracer_init_tracefs",  # a directory of files for each trace event: 30 s
    "ftrace_check_for_weak_functions",  # goes through all functions that can be traced
    "trace_eval_init",  # rewrites the formats of all trace events
    "slab_sysfs_init",  # a directory of files for each cache
    "slab_late_init",  # the same in 6.12.117
    "blake2s_mod_init",  # nothing but a test, as is the next
    "crypto_kdf108_init",
    "bpf_dummy_struct_ops_init",  # for tests of BPF: 6.12, 9 s
    "nvme_core_init",  # of what no machine of ours has, as is the next
    "powercap_init",
    "load_system_certificate_list",  # parses the X.509 certificates that modules are signed with
    # These have BPF parse the types of all of the kernel (BTF), for functions that programs in BPF
    # may call.
    "bpf_rstat_kfunc_init",
    "bpf_key_sig_kfuncs_init",
    "bpf_kprobe_multi_kfuncs_init",
    "kfunc_init",
    "cpumask_kfunc_init",
    "crypto_kfunc_init",
    "bpf_fs_kfuncs_init",
    "bpf_kfunc_init",
    "bpf_prog_test_run_init",
    "bpf_tcp_ca_kfunc_init",
    "bpf_mptcp_kfunc_init",
)
# So has this one, 40 s, and TCP is left with the Reno algorithm; but since 6.8 the network has them
# parsed in any case (net/xfrm/xfrm_policy.c, xfrm_init).
_CUBIC = "cubictcp_register"
_TYPES_ARE_PARSED_SINCE = (6, 8)

_TIMERS = ("noapictimer", "nolapic", "lapic", "lapic_timer_c2_ok", "apicpmtimer")

_MITIGATIONS = (
    *("pti", "nopti", "nospectre_v1", "nospectre_v2", "spectre_v2", "spectre_v2_user"),
    *("spec_store_bypass_disable", "nospec_store_bypass_disable", "l1tf", "mds"),
    *("tsx_async_abort", "kvm.nx_huge_pages", "srbds", "mmio_stale_data", "retbleed"),
    *("spec_rstack_overflow", "gather_data_sampling", "reg_file_data_sampling", "spectre_bhi"),
)


class _Parameter(NamedTuple):
    """One to be added, unless the line has it already, or one of ``unless``."""

    name: str
    value: str | None
    unless: tuple[str, ...] = ()
    adds_up: bool = False
    """Whether a second one on the line takes nothing away from the first."""


def tune_for_emulation(
    line: str, version: Version, capacity_bytes: int, cpu_count: int = 1
) -> Tuned:
    """``line`` with what a Linux of ``version`` on ``cpu_count`` processors is to be told besides.

    ``capacity_bytes`` is what the kernel takes, the NUL included. A line that does not fit, or is
    none by the kernel's own rules, stays as it is.
    """
    try:
        cmdline = Cmdline.parse(line, capacity_bytes)
    except CmdlineError:
        return Tuned(line)
    given = {_comparable(parameter.name) for parameter in cmdline.parameters}
    added = []
    for name, value, unless, adds_up in _parameters_for(version, cpu_count):
        if not adds_up and given.intersection(map(_comparable, (name, *unless))):
            continue
        text = name if value is None else f"{name}={value}"
        try:
            cmdline.insert_str(text)
        except CmdlineError:  # no room; for a shorter one there may be
            continue
        added.append(text)
    has_pit = "nolapic_timer" in added or bool(given & {"nolapic_timer", "noapictimer", "nolapic"})
    ticks_by_pit = has_pit and not given & {"notsc", "clocksource"}
    return Tuned(str(cmdline) if added else line, tuple(added), ticks_by_pit)


def _comparable(name: str) -> str:
    """The kernel takes - and _ for the same (kernel/params.c, parameq)."""
    return name.replace("-", "_")


def _parameters_for(version: Version, cpu_count: int) -> list[_Parameter]:
    """What helps most comes first, in case that there is not room for all."""
    parameters = []
    if version >= _SEVERAL_FEATURES_SINCE:
        by_name = version >= _FEATURE_NAMES_SINCE
        features = (name if by_name else str(number) for name, number in _FEATURES.items())
        parameters.append(_Parameter("clearcpuid", ",".join(features)))
    if cpu_count == 1:
        # The ticks are to come from the PIT, where the board can make them fewer. More processors
        # than one cannot do with its alone.
        parameters.append(_Parameter("nolapic_timer", None, unless=_TIMERS))
        # A kernel without CONFIG_KVM_GUEST would want more ticks at once than there are.
        parameters.append(_Parameter("no_timer_check", None))
    initcalls = _INITCALLS if version >= _TYPES_ARE_PARSED_SINCE else (*_INITCALLS, _CUBIC)
    return [
        *parameters,
        # init/main.c keeps a list.
        _Parameter("initcall_blacklist", ",".join(initcalls), adds_up=True),
        _Parameter("cryptomgr.notests", None),
        # With one processor Linux takes each LOCK prefix out of itself, by a mapping for each. (It
        # does no harm where there are more.)
        _Parameter("noreplace-smp", None),
        _Parameter("rodata", "off"),  # splits large pages, then checks all of them
        _Parameter("mitigations", "off", unless=_MITIGATIONS),
        _Parameter("init_on_alloc", "0"),
        _Parameter("audit", "0"),
        _Parameter("lsm", "", unless=("security", "apparmor", "selinux")),
        _Parameter("tsc", "reliable", unless=("notsc", "clocksource")),
    ]
