/*
 * Preloaded by scripts/bench into a VMM: writes the time of its first KVM_RUN (CLOCK_MONOTONIC,
 * nanoseconds) to the file descriptor in BENCH_FD, and leaves everything else alone.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int ioctl(int fd, unsigned long request, ...)
{
    static int (*next)(int, unsigned long, void *);
    static int seen;
    va_list arguments;

    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if (!next)
        next = (int (*)(int, unsigned long, void *))dlsym(RTLD_NEXT, "ioctl");
    if (request == KVM_RUN && !seen) {
        struct timespec time;
        seen = 1;
        clock_gettime(CLOCK_MONOTONIC, &time);
        dprintf(atoi(getenv("BENCH_FD")), "%llu\n", time.tv_sec * 1000000000ull + time.tv_nsec);
    }
    return next(fd, request, argument);
}
