"""Kernel tests with pytest: a plugin, and what it is made of, for use without pytest too.

    plugin.py     the fixtures vm, vm_factory and ktap, the marker kernel, the options, the report
    vm.py         Vm: a guest with a console to expect things of, and commands to run in it
    console.py    pexpect's spawn class over a guest's console
    text.py       a console's bytes as text
    agent.py      commands in the guest by a second serial port; agent.sh is the guest's end
    command.py    one command in a guest of its own
    initramfs.py  the initramfs with busybox and the agent
    outcomes.py   an exception for each way in which a guest can fail
    problems.py   oopses, warnings and reports on the console
    ktap.py       the guest's own test results
    report.py     registers, symbols and backtrace

docs/testing.md is the manual. Only plugin.py, vm.py and console.py need pytest and pexpect.
"""
