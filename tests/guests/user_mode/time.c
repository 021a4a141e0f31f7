/* Clocks: the kernel's, and the one that a program reads by itself (vDSO, by RDTSC). */

#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

#define READINGS 500
#define SLEEP_NS 20000000

#define NS_PER_S 1000000000

static int64_t ns(const struct timespec *time)
{
	return time->tv_sec * (int64_t)NS_PER_S + time->tv_nsec;
}

static int64_t ask_kernel(void)
{
	struct timespec now;

	expect("clock_gettime by system call", 0,
	       syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now));
	return ns(&now);
}

static int64_t ask_library(void)
{
	struct timespec now;

	expect("clock_gettime", 0, clock_gettime(CLOCK_MONOTONIC, &now));
	return ns(&now);
}

void check_clock(void)
{
	int64_t last = 0;

	for (int i = 0; i < READINGS; i++) {
		int64_t now = i % 2 ? ask_kernel() : ask_library();

		expect_true("the clock never goes back", now >= last);
		last = now;
	}
}

void check_sleep(void)
{
	struct timespec time = {.tv_nsec = SLEEP_NS};
	int64_t start = ask_kernel();

	expect("nanosleep", 0, nanosleep(&time, NULL));
	expect_true("no less than 20 ms by the kernel's clock", ask_kernel() - start >= SLEEP_NS);
}
