"""A machine with a hardware-style /dev/kvm, emulated by QEMU, around this machine's own files.

QEMU's TCG emulates AMD's SVM, nested paging included. A stock Debian kernel in it loads kvm-amd,
and its /dev/kvm behaves as on hardware, only slower. It sees the host's files, so that the very
checkout and virtual environment of the host run there: nothing is installed, no root is needed.

    host    scripts/lab or pytest --pyvmm-ground=lab, qemu-system-x86_64
    L1      Debian's generic kernel, a busybox /init (init.sh), the command
    L2      what the command runs with /dev/kvm: pyvmm's guests

    machine  one run: QEMU's command line, the streams, the timeout, the exit status
    image    kernel, modules and initramfs of L1: made once, kept in the cache
    monitor  asking QEMU where the machine's processor is, when its time is over
    init.sh  what L1 does: modules, file systems, the command, its status
"""
