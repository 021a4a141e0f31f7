/*
 * The ways for a guest to end.
 *
 * Each is a write to a port. A machine may take a moment to obey; if it has nothing there and
 * never does, we say so and stop the CPU for good.
 */

#include "kernel.h"

#define PM1A_CONTROL    0x604           /* where QEMU's PC and pyvmm have it */
#define SLP_EN          (1 << 13)       /* ACPI 4.8.3.2.1; SLP_TYP 0 is S5 on both */

#define I8042_COMMAND   0x64
#define PULSE_RESET     0xfe            /* pulse output line 0, which is the CPU's reset */

#define DEBUG_EXIT      0xf4            /* where pyvmm has it, and QEMU's isa-debug-exit */

static _Noreturn void had_no_effect(const char *what)
{
        wait_for_ticks(10);
        print(what);
        print(" had no effect; halted\n");
        halt_forever();
}

_Noreturn void power_off(void)
{
        flush();
        outw(PM1A_CONTROL, SLP_EN);
        had_no_effect("power off");
}

_Noreturn void reset(void)
{
        flush();
        outb(I8042_COMMAND, PULSE_RESET);
        had_no_effect("reset");
}

_Noreturn void guest_exit(u8 status)
{
        flush();
        outb(DEBUG_EXIT, status);
        had_no_effect("debug exit");
}
