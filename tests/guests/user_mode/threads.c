/*
 * Threads: four of them on one processor, so that they take it from each other.
 *
 * Each has states of its own in its registers, never the same twice, and finds them again behind
 * every system call that lets another one run, and behind every loop that a tick interrupts.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "state.h"

#define THREADS 4
#define YIELDS 500
#define ROUNDS 250
#define PREEMPTIONS 300
#define PATIENCE_S 100
#define LOOPS 200000
#define INCREMENTS 2000

static void pin_to_first_processor(cpu_set_t *before)
{
	cpu_set_t one;
	int first = 0;

	sched_getaffinity(0, sizeof *before, before);
	while (!CPU_ISSET(first, before))
		first++;
	CPU_ZERO(&one);
	CPU_SET(first, &one);
	expect("sched_setaffinity", 0, sched_setaffinity(0, sizeof one, &one));
}

/* Run `work` in each thread, with its number. */
static void run_threads(void *(*work)(void *))
{
	pthread_t threads[THREADS];
	cpu_set_t before;

	pin_to_first_processor(&before);
	for (long i = 0; i < THREADS; i++)
		expect("pthread_create", 0, pthread_create(&threads[i], NULL, work, (void *)i));
	for (int i = 0; i < THREADS; i++)
		expect("pthread_join", 0, pthread_join(threads[i], NULL));
	sched_setaffinity(0, sizeof before, &before);
}

static uint64_t seed(long thread, long round)
{
	return (thread + 1) << 32 | round;
}

static void *yield(void *number)
{
	for (int i = 0; i < YIELDS; i++) {
		long result = call_keeping_state(seed((long)number, i), SYS_sched_yield, 0, 0, 0, 0);

		expect("sched_yield", 0, result);
	}
	return NULL;
}

void check_yielding_threads(void)
{
	run_threads(yield);
}

/* A token that goes round: whoever has a 1 has it. */
static atomic_int token[THREADS];
static int hand_overs; /* changed by whoever has the token */

static void *hand_over(void *number)
{
	long self = (long)number, next = (self + 1) % THREADS;

	for (int i = 0; i < ROUNDS; i++) {
		while (!token[self]) {
			long result = call_keeping_state(seed(self, i), SYS_futex, (long)&token[self],
							 FUTEX_WAIT_PRIVATE, 0, 0);

			expect_true("woken, or too late to wait", result == 0 || result == -EAGAIN);
		}
		token[self] = 0;
		hand_overs++;
		token[next] = 1;
		syscall(SYS_futex, &token[next], FUTEX_WAKE_PRIVATE, 1);
	}
	return NULL;
}

void check_handing_over(void)
{
	hand_overs = 0;
	token[0] = 1;
	run_threads(hand_over);
	token[0] = 0;
	expect("hand-overs", THREADS * ROUNDS, hand_overs);
}

static atomic_long preemptions;
static time_t give_up_at;

static time_t now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

static void *be_preempted(void *number)
{
	struct rusage usage;
	long known = 0;

	for (int i = 0; preemptions < PREEMPTIONS && now_s() < give_up_at; i++) {
		prepare(seed((long)number, i));
		GPR(wanted, RCX) = LOOPS;
		around_loop();
		GPR(wanted, RCX) = 0;
		compare("loop");
		getrusage(RUSAGE_THREAD, &usage);
		preemptions += usage.ru_nivcsw - known;
		known = usage.ru_nivcsw;
	}
	return NULL;
}

void check_preempted_threads(void)
{
	preemptions = 0;
	give_up_at = now_s() + PATIENCE_S;
	run_threads(be_preempted);
	expect_true("300 switches within 100 s", preemptions >= PREEMPTIONS);
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static volatile long counter;

static void *count(void *number)
{
	for (int i = 0; i < INCREMENTS; i++) {
		long value;

		pthread_mutex_lock(&mutex);
		value = counter;
		if (i % 64 == (long)number)
			sched_yield(); /* the others come, and have to wait */
		counter = value + 1;
		pthread_mutex_unlock(&mutex);
	}
	return NULL;
}

void check_mutex(void)
{
	counter = 0;
	run_threads(count);
	expect("counter", THREADS * INCREMENTS, counter);
}

static __thread long own = 42;
static pthread_barrier_t all_there;

static void *have_own(void *number)
{
	expect("initial value", 42, own);
	own = (long)number;
	pthread_barrier_wait(&all_there); /* now each has written */
	expect("own value", (long)number, own);
	return NULL;
}

void check_thread_locals(void)
{
	pthread_barrier_init(&all_there, NULL, THREADS);
	run_threads(have_own);
	expect("value of the first thread", 42, own);
	pthread_barrier_destroy(&all_there);
}
