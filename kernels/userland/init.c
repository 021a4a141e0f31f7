/*
 * The smallest useful /init: says that user space was reached, then ends the run.
 *
 * It is for boots where every byte that the kernel unpacks counts. There is no C library in it:
 * system calls and nothing else, so it has to begin at _start itself.
 *
 *   init             says READY, then powers off, or resets where there is no ACPI to power off by
 *   init reboot      resets instead
 *   init exit N      ends the run with exit status N, through pyvmm's debug exit port
 *   init panic       returns, which makes the kernel panic: "Attempted to kill init!"
 *
 * The kernel passes on what stands behind " -- " on its command line.
 *
 * System calls: arch/x86/entry/syscalls/syscall_64.tbl; the numbers of reboot(2): linux/reboot.h.
 */

#include <asm/unistd.h>
#include <linux/reboot.h>

#define READY "pyvmm initramfs: ready\n"

/* pyvmm/devices/ports.py */
#define DEBUG_EXIT_PORT 0xf4

/* Documentation/admin-guide/devices.txt: 1 char, 4 = /dev/port */
#define PORT_DEVICE ((1 << 8) | 4)
#define S_IFCHR 0020000
#define O_WRONLY 1

static long call(long number, long a, long b, long c, long d)
{
	long result;
	register long r10 asm("r10") = d;

	asm volatile("syscall"
		     : "=a"(result)
		     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
		     : "rcx", "r11", "memory");
	return result;
}

static long length(const char *text)
{
	long count = 0;

	while (text[count])
		count++;
	return count;
}

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static void say(const char *text)
{
	call(__NR_write, 1, (long)text, length(text), 0);
}

/* The kernel starts /init with the console as its standard streams, if it could be opened. */
static void restart(long command)
{
	call(__NR_sync, 0, 0, 0, 0);
	call(__NR_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, command, 0);
}

/* Through the kernel, if it knows /dev/port (CONFIG_DEVPORT); else by an OUT of our own, for which
 * iopl(2) is needed (CONFIG_X86_IOPL_IOPERM). */
static void debug_exit(const char *status)
{
	unsigned char value = 0;
	long port;

	while (*status >= '0' && *status <= '9')
		value = value * 10 + (*status++ - '0');
	call(__NR_mknod, (long)"/port", S_IFCHR | 0600, PORT_DEVICE, 0);
	port = call(__NR_open, (long)"/port", O_WRONLY, 0, 0);
	if (call(__NR_pwrite64, port, (long)&value, 1, DEBUG_EXIT_PORT) == 1)
		return;
	if (call(__NR_iopl, 3, 0, 0, 0) == 0)
		asm volatile("outb %b0, %w1" : : "a"(value), "d"(DEBUG_EXIT_PORT));
	say("init: there is no way here to end with a status\n");
}

__attribute__((used)) static void run(long *stack)
{
	long argc = stack[0];
	char **argv = (char **)(stack + 1);
	const char *verb = argc > 1 ? argv[1] : "poweroff";

	say(READY);
	if (call(__NR_getpid, 0, 0, 0, 0) != 1)
		call(__NR_exit_group, 0, 0, 0, 0); /* somebody tries it out: nothing to end here */
	if (same(verb, "exit")) {
		debug_exit(argc > 2 ? argv[2] : "0");
		verb = "panic"; /* there is no other end that is neither a success nor a new boot */
	}
	if (same(verb, "panic"))
		call(__NR_exit_group, 0, 0, 0, 0);
	if (same(verb, "poweroff"))
		restart(LINUX_REBOOT_CMD_POWER_OFF);
	restart(LINUX_REBOOT_CMD_RESTART);
	for (;;)
		call(__NR_pause, 0, 0, 0, 0);
}

/* On entry RSP points to argc (x86-64 psABI 3.4.1). */
asm(".globl _start\n"
    "_start:\n"
    "	xor	%ebp, %ebp\n"
    "	mov	%rsp, %rdi\n"
    "	and	$-16, %rsp\n"
    "	call	run\n");
