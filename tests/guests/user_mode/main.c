/*
 * What a program in user mode may rely on, checked one by one: on any Linux, in any machine.
 *
 * Where KVM has no hardware under it every system call, signal, page fault and switch goes through
 * something that is made up for the hardware: pyvmm/completion. This program is what shows that
 * nobody can tell. It says the same everywhere, in the Test Anything Protocol; its exit status is 0
 * if everything is right. As the first process of a machine it starts another one for all this, and
 * powers the machine off when that is done.
 *
 * How wide the vector registers are is the only thing that differs, and told first.
 *
 * Left out: 32-bit code and INT 0x80, segments, debug registers, floating-point exceptions.
 */

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "state.h"

static const struct {
	const char *name;
	void (*run)(void);
} checks[] = {
	{"getppid 5000 times, every register kept", check_getppid},
	{"system call that there is not", check_unknown_call},

	{"signal to itself, every register restored", check_signal_to_itself},
	{"signals within signals", check_nested_signals},
	{"timer interrupting a loop", check_timer_signal},
	{"int3", check_breakpoint},
	{"ud2", check_undefined_instruction},
	{"single step", check_single_step},
	{"division by zero", check_division_by_zero},
	{"hlt", check_privileged_instruction},
	{"signal on a stack of its own", check_alternate_stack},

	{"protected pages", check_protection},
	{"pages without execution", check_no_execute},
	{"fresh pages and unmapped ones", check_fresh_memory},
	{"code that was just written", check_written_code},
	{"stack that grows", check_stack_growth},

	{"fork, copy on write", check_copy_on_write},
	{"memory shared between processes", check_shared_memory},
	{"fork, every register in both", check_state_in_child},
	{"20 forks in one another", check_chain_of_forks},
	{"vfork and exec, arguments and environment", check_exec},
	{"pipe between processes", check_pipe},
	{"child killed by a signal", check_killed_child},

	{"4 threads yielding, every register kept", check_yielding_threads},
	{"4 threads waiting for each other, every register kept", check_handing_over},
	{"4 threads preempted, every register kept", check_preempted_threads},
	{"4 threads and a mutex", check_mutex},
	{"4 threads' own variables", check_thread_locals},

	{"clock", check_clock},
	{"sleep", check_sleep},
};

#define CHECKS (sizeof checks / sizeof *checks)

const char *program;

static atomic_int failures;
#define FAILURES_TOLD 20 /* of each process: after that it is known that something is wrong */

void expect(const char *what, uint64_t expected, uint64_t found)
{
	if (expected != found && failures++ < FAILURES_TOLD)
		dprintf(1, "# %s: expected %#lx, seen %#lx\n", what, expected, found);
}

void expect_true(const char *what, int right)
{
	if (!right && failures++ < FAILURES_TOLD)
		dprintf(1, "# %s: expected, not seen\n", what);
}

void end_child(void)
{
	_exit(failures != 0);
}

void expect_good_child(const char *what, long pid)
{
	int status = -1;

	expect_true(what, pid > 0);
	expect(what, pid, waitpid(pid, &status, 0));
	expect(what, 0, status);
}

static int run_checks(void)
{
	int failed = 0;

	find_vector_bytes();
	dprintf(1, "TAP version 13\n1..%zu\n", CHECKS);
	dprintf(1, "# vector registers have %d bytes\n", vector_bytes);
	for (size_t i = 0; i < CHECKS; i++) {
		failures = 0;
		checks[i].run();
		failed += failures != 0;
		dprintf(1, "%s %zu - %s\n", failures ? "not ok" : "ok", i + 1, checks[i].name);
	}
	return failed != 0;
}

int main(int argc, char **argv, char **environment)
{
	int status;

	program = argv[0];
	if (argc > 1 && !strcmp(argv[1], "exec"))
		return main_after_exec(argc, argv, environment);
	/* What happens to the first process the kernel tells on the console, among our lines. */
	if (getpid() != 1 || fork() == 0)
		return run_checks();
	wait(&status);
	if (WIFSIGNALED(status))
		dprintf(1, "Bail out! Killed by signal %d\n", WTERMSIG(status));
	reboot(RB_POWER_OFF);
	return 1;
}
