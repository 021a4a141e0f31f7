/* Signals: those that somebody sends, and those that exceptions of the processor become. */

#define _GNU_SOURCE
#include "signals.h"

#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#include "check.h"
#include "state.h"

#define ALARMS 5
#define ALARM_US 20000

/* Vectors of exceptions: SDM 3A table 6-1 */
#define DIVIDE_ERROR 0
#define DEBUG 1
#define BREAKPOINT 3
#define INVALID_OPCODE 6
#define GENERAL_PROTECTION 13

#define TF 0x100 /* of RFLAGS */

volatile struct caught caught;
static const char *continuation;

static void on_signal(int number, siginfo_t *info, void *context)
{
	greg_t *gregs = ((ucontext_t *)context)->uc_mcontext.gregs;

	caught.count++;
	caught.number = number;
	caught.code = info->si_code;
	caught.address = (uint64_t)info->si_addr;
	caught.sender = info->si_pid;
	caught.rip = gregs[REG_RIP];
	caught.trap = gregs[REG_TRAPNO];
	caught.error_code = gregs[REG_ERR];
	if (continuation)
		gregs[REG_RIP] = (greg_t)continuation;
	gregs[REG_EFL] &= ~TF;
	if (caught.rip >= (uint64_t)at_wait && caught.rip < (uint64_t)after_wait)
		alarms = 1;
	clobber_state();
}

void catch_signal(int number, int flags, const char *go_on)
{
	struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | flags};

	memset((void *)&caught, 0, sizeof caught);
	continuation = go_on;
	expect("sigaction", 0, sigaction(number, &action, NULL));
}

void expect_signal(int number, int code)
{
	expect("signals", 1, caught.count);
	expect("signal's number", number, caught.number);
	expect("si_code", code, caught.code);
}

void check_signal_to_itself(void)
{
	catch_signal(SIGUSR1, 0, NULL);
	expect("kill", 0, call_keeping_state(1, SYS_kill, getpid(), SIGUSR1, 0, 0));
	expect_signal(SIGUSR1, SI_USER);
	expect("si_pid", getpid(), caught.sender);
	expect("interrupted at", (uint64_t)after_syscall, caught.rip);
}

/* What happened, in order: a handler begins with a capital letter, and ends with a small one. */
static char story[16];

static void note(char event)
{
	size_t end = strlen(story);

	if (end < sizeof story - 1)
		story[end] = event;
}

static void on_nested(int number)
{
	int is_first = !story[0];

	note(number == SIGUSR1 ? 'A' : 'B');
	clobber_state();
	if (is_first) {
		kill(getpid(), SIGUSR1); /* blocked until this handler returns */
		kill(getpid(), SIGUSR2);
	}
	note(number == SIGUSR1 ? 'a' : 'b');
}

void check_nested_signals(void)
{
	struct sigaction action = {.sa_handler = on_nested};

	memset(story, 0, sizeof story);
	sigaction(SIGUSR1, &action, NULL);
	sigaction(SIGUSR2, &action, NULL);
	expect("kill", 0, call_keeping_state(1, SYS_kill, getpid(), SIGUSR1, 0, 0));
	expect_true("handlers begin and end in the order ABbaAa", !strcmp(story, "ABbaAa"));
}

/* An alarm that comes before the loop does not count: there will be another one. */
void check_timer_signal(void)
{
	const struct timeval interval = {.tv_usec = ALARM_US};
	const struct itimerval again_and_again = {interval, interval}, never = {0};

	catch_signal(SIGALRM, 0, NULL);
	expect("setitimer", 0, setitimer(ITIMER_REAL, &again_and_again, NULL));
	for (int i = 0; i < ALARMS; i++) {
		alarms = 0;
		prepare(i);
		around_wait();
		GPR(wanted, RCX) = 1;
		compare("loop");
	}
	expect("setitimer", 0, setitimer(ITIMER_REAL, &never, NULL));
	expect("signal's number", SIGALRM, caught.number);
	expect("si_code", SI_KERNEL, caught.code);
}

/* The registers at the instruction are those of `wanted`, which the caller has prepared. */
static void expect_exception(void (*around)(void), int number, int code, int vector)
{
	around();
	compare("exception");
	expect_signal(number, code);
	expect("exception's vector", vector, caught.trap);
}

void check_breakpoint(void)
{
	catch_signal(SIGTRAP, 0, NULL);
	prepare(1);
	expect_exception(around_breakpoint, SIGTRAP, SI_KERNEL, BREAKPOINT);
	expect("behind the instruction", (uint64_t)after_breakpoint, caught.rip);
}

void check_undefined_instruction(void)
{
	catch_signal(SIGILL, 0, after_undefined);
	prepare(1);
	expect_exception(around_undefined, SIGILL, ILL_ILLOPN, INVALID_OPCODE);
	expect("si_addr", (uint64_t)at_undefined, caught.address);
}

void check_single_step(void)
{
	catch_signal(SIGTRAP, 0, NULL);
	prepare(1);
	expect_exception(around_step, SIGTRAP, TRAP_TRACE, DEBUG);
	expect("behind the instruction", (uint64_t)after_step, caught.rip);
}

void check_division_by_zero(void)
{
	catch_signal(SIGFPE, 0, after_divide);
	prepare(1);
	GPR(wanted, RCX) = 0;
	expect_exception(around_divide, SIGFPE, FPE_INTDIV, DIVIDE_ERROR);
	expect("si_addr", (uint64_t)at_divide, caught.address);
}

void check_privileged_instruction(void)
{
	catch_signal(SIGSEGV, 0, after_halt);
	prepare(1);
	expect_exception(around_halt, SIGSEGV, SI_KERNEL, GENERAL_PROTECTION);
	expect("error code", 0, caught.error_code);
	expect("at the instruction", (uint64_t)at_halt, caught.rip);
}

static char *handler_stack;
static size_t handler_stack_bytes;
static volatile int was_on_it;

static void on_alternate_stack(int number)
{
	uintptr_t here = (uintptr_t)__builtin_frame_address(0);

	(void)number;
	was_on_it = here - (uintptr_t)handler_stack < handler_stack_bytes;
	clobber_state();
}

void check_alternate_stack(void)
{
	struct sigaction action = {.sa_handler = on_alternate_stack, .sa_flags = SA_ONSTACK};
	stack_t stack = {.ss_flags = 0}, none = {.ss_flags = SS_DISABLE};

	handler_stack_bytes = SIGSTKSZ; /* as much as this processor's state needs, too */
	stack.ss_size = handler_stack_bytes;
	stack.ss_sp = handler_stack = malloc(handler_stack_bytes);
	expect("sigaltstack", 0, sigaltstack(&stack, NULL));
	sigaction(SIGUSR1, &action, NULL);
	was_on_it = 0;
	expect("kill", 0, call_keeping_state(1, SYS_kill, getpid(), SIGUSR1, 0, 0));
	expect("handler is on its stack", 1, was_on_it);
	expect("sigaltstack", 0, sigaltstack(&none, NULL));
	free(handler_stack);
}
