/*
 * A check is a function that expects things. main.c has the list of them, and tells of each.
 */

#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>

/* If they differ the check has failed; what was expected and seen is told. From any thread. */
void expect(const char *what, uint64_t expected, uint64_t seen);

/* For what has no single right value. */
void expect_true(const char *what, int right);

/* How a child process ends, and what its parent makes of that. */
_Noreturn void end_child(void);
void expect_good_child(const char *what, long pid);

/* The path of this program. */
extern const char *program;

void check_getppid(void);
void check_unknown_call(void);

void check_signal_to_itself(void);
void check_nested_signals(void);
void check_timer_signal(void);
void check_breakpoint(void);
void check_undefined_instruction(void);
void check_single_step(void);
void check_division_by_zero(void);
void check_privileged_instruction(void);
void check_alternate_stack(void);

void check_protection(void);
void check_no_execute(void);
void check_fresh_memory(void);
void check_written_code(void);
void check_stack_growth(void);

void check_copy_on_write(void);
void check_shared_memory(void);
void check_state_in_child(void);
void check_chain_of_forks(void);
void check_exec(void);
int main_after_exec(int argc, char **argv, char **environment);
void check_pipe(void);
void check_killed_child(void);

void check_yielding_threads(void);
void check_handing_over(void);
void check_preempted_threads(void);
void check_mutex(void);
void check_thread_locals(void);

void check_clock(void);
void check_sleep(void);

#endif
