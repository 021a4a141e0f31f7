/*
 * The yardstick of scripts/bench: a run loop in C, as short as can be, for the same guest.
 *
 *     bench_exits GUEST
 *
 * GUEST is a file of real-mode code, put at 0x1000 and entered there. Writes to port 0x3f8 go to
 * standard output through a buffer, reads of 0x3fd say that the transmitter is empty, everything
 * else is ignored; a write to port 0xf4 ends the run. Prints the exits and the nanoseconds from
 * the first KVM_RUN to the end on standard error.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MEMORY_BYTES = 0x10000, CODE_GPA = 0x1000 };

static long check(long result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

static uint64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

int main(int argc, char **argv)
{
    static char output[4096];
    size_t output_bytes = 0;
    if (argc != 2)
        return 2;
    int kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "open /dev/kvm");
    int vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    uint8_t *memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int guest = check(open(argv[1], O_RDONLY), argv[1]);
    check(read(guest, memory + CODE_GPA, MEMORY_BYTES - CODE_GPA), argv[1]);
    struct kvm_userspace_memory_region region = {
        .memory_size = MEMORY_BYTES, .userspace_addr = (uintptr_t)memory};
    check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    int vcpu = check(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    struct kvm_run *run = mmap(NULL, check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "mmap size"),
                               PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    struct kvm_sregs sregs;
    check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    sregs.cs.base = sregs.cs.selector = 0;
    check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    struct kvm_regs regs = {.rip = CODE_GPA, .rflags = 2};
    check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");

    uint64_t exits = 0, began = now_ns();
    for (;;) {
        check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
        exits++;
        if (run->exit_reason != KVM_EXIT_IO) {
            fprintf(stderr, "exit reason %u\n", run->exit_reason);
            return 1;
        }
        uint8_t *data = (uint8_t *)run + run->io.data_offset;
        if (run->io.direction == KVM_EXIT_IO_IN) {
            *data = run->io.port == 0x3fd ? 0x60 : 0xff;
        } else if (run->io.port == 0x3f8) {
            output[output_bytes++] = *data;
            if (output_bytes == sizeof(output)) {
                check(write(1, output, output_bytes), "write");
                output_bytes = 0;
            }
        } else if (run->io.port == 0xf4) {
            break;
        }
    }
    check(write(1, output, output_bytes), "write");
    fprintf(stderr, "%llu %llu\n", (unsigned long long)exits,
            (unsigned long long)(now_ns() - began));
    return 0;
}
