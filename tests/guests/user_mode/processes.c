/* Processes: fork, exec, and what parents and children have in common and have not. */

#define _GNU_SOURCE
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "state.h"

#define PAGE 4096
#define FORKS 20
#define PIECES 32
#define PIECE_BYTES 512

static volatile long *map_long(int sharing)
{
	void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS, -1, 0);

	expect_true("mmap", page != MAP_FAILED);
	return page;
}

static void tell(const int pipe_ends[2])
{
	expect("write", 1, write(pipe_ends[1], "", 1));
}

static void wait_for(const int pipe_ends[2])
{
	char byte;

	expect("read", 1, read(pipe_ends[0], &byte, 1));
}

void check_copy_on_write(void)
{
	volatile long *number = map_long(MAP_PRIVATE);
	int to_child[2], to_parent[2];
	long child;

	*number = 1;
	expect("pipes", 0, pipe(to_child) | pipe(to_parent));
	child = fork();
	if (child == 0) {
		expect("what the child finds", 1, *number);
		*number = 2;
		tell(to_parent);
		wait_for(to_child);
		expect("what the child has written", 2, *number);
		end_child();
	}
	wait_for(to_parent);
	expect("what the parent has when the child has written", 1, *number);
	*number = 3;
	tell(to_child);
	expect_good_child("child", child);
	expect("what the parent has written", 3, *number);
	munmap((void *)number, PAGE);
	for (int i = 0; i < 2; i++) {
		close(to_child[i]);
		close(to_parent[i]);
	}
}

void check_shared_memory(void)
{
	volatile long *number = map_long(MAP_SHARED);
	long child = fork();

	if (child == 0) {
		*number = 7;
		end_child();
	}
	expect_good_child("child", child);
	expect("what the child has written", 7, *number);
	munmap((void *)number, PAGE);
}

void check_state_in_child(void)
{
	long child = call_keeping_state(1, SYS_fork, 0, 0, 0, 0);

	if (child == 0)
		end_child();
	expect_good_child("child", child);
}

void check_chain_of_forks(void)
{
	int below_first, status = -1, depth = 0;
	long child;

	while ((child = fork()) == 0 && ++depth < FORKS)
		;
	if (child)
		waitpid(child, &status, 0);
	below_first = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
	if (depth) /* a child: tell how many processes there are from here on */
		_exit(child ? below_first + 1 : 1);
	expect("processes", FORKS, below_first);
}

static char *const arguments[] = {"user mode", "exec", "two words", "", NULL};
static char *const settings[] = {"SETTING=value", "EMPTY=", NULL};

void check_exec(void)
{
	long child = vfork();

	if (child == 0) {
		execve(program, arguments, settings);
		_exit(100);
	}
	expect_good_child("program", child);
}

static void expect_strings(const char *what, char *const *expected, char *const *found)
{
	for (; *expected && *found; expected++, found++)
		expect_true(what, !strcmp(*expected, *found));
	expect_true(what, !*expected && !*found);
}

int main_after_exec(int argc, char **argv, char **environment)
{
	expect("argc", sizeof arguments / sizeof *arguments - 1, argc);
	expect_strings("arguments", arguments, argv);
	expect_strings("environment", settings, environment);
	end_child();
}

/* A pipe holds 64 KiB, so that nobody waits for room; the reader waits for each piece. */
void check_pipe(void)
{
	char piece[PIECE_BYTES], expected[PIECE_BYTES];
	int ends[2];
	long child;

	expect("pipe", 0, pipe(ends));
	child = fork();
	if (child == 0) {
		close(ends[1]);
		for (int i = 0; i < PIECES; i++) {
			long size = call_keeping_state(i, SYS_read, ends[0], (long)piece, PIECE_BYTES, 0);

			memset(expected, i, PIECE_BYTES);
			expect("read", PIECE_BYTES, size);
			expect("piece's difference", 0, memcmp(expected, piece, PIECE_BYTES));
		}
		expect("read at the end", 0, read(ends[0], piece, PIECE_BYTES));
		end_child();
	}
	close(ends[0]);
	for (int i = 0; i < PIECES; i++) {
		memset(piece, i, PIECE_BYTES);
		expect("write", PIECE_BYTES, write(ends[1], piece, PIECE_BYTES));
		syscall(SYS_sched_yield);
	}
	close(ends[1]);
	expect_good_child("reader", child);
}

void check_killed_child(void)
{
	long child = fork();
	int status = -1;

	if (child == 0) {
		signal(SIGILL, SIG_DFL);
		prctl(PR_SET_DUMPABLE, 0); /* no core file */
		__builtin_trap();
	}
	expect("waitpid", child, waitpid(child, &status, 0));
	expect_true("killed", WIFSIGNALED(status));
	expect("by", SIGILL, WTERMSIG(status));
}
