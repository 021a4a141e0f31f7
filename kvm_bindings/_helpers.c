/*
 * The C side of kvm_bindings: system calls that return -errno, KVM_RUN, the kick signal, and the
 * reader of the coalesced ring. cffi compiles it into _abi and drops the GIL around each call.
 */

#define PAGE_SIZE 4096 /* on x86; KVM_COALESCED_MMIO_MAX needs it */

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/kvm.h>

#ifndef __x86_64__
#error "kvm_bindings is for x86-64"
#endif
#ifndef KVM_CAP_DIRTY_LOG_RING_ACQ_REL
#error "<linux/kvm.h> is older than Linux 6.1: install linux-libc-dev 6.1 or newer"
#endif

/* What came after Linux 6.1: the ABI's numbers do not change, the headers may lack them. */
#ifndef KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP
#define KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP 225 /* 6.2 */
#endif
#ifndef KVM_CAP_PMU_EVENT_MASKED_EVENTS
#define KVM_CAP_PMU_EVENT_MASKED_EVENTS 226 /* 6.3 */
#endif
#ifndef KVM_CAP_USER_MEMORY2
#define KVM_CAP_USER_MEMORY2 231 /* 6.8 */
#define KVM_CAP_MEMORY_FAULT_INFO 232
#define KVM_CAP_MEMORY_ATTRIBUTES 233
#define KVM_CAP_GUEST_MEMFD 234
#define KVM_CAP_VM_TYPES 235
#endif
#ifndef KVM_CAP_PRE_FAULT_MEMORY
#define KVM_CAP_PRE_FAULT_MEMORY 236 /* 6.11 */
#define KVM_CAP_X86_APIC_BUS_CYCLES_NS 237
#endif
#ifndef KVM_CAP_X86_GUEST_MODE
#define KVM_CAP_X86_GUEST_MODE 238 /* 6.12 */
#endif
#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39 /* 6.8 */
#define KVM_MEMORY_EXIT_FLAG_PRIVATE (1ULL << 3)
#define KVM_NO_MEMORY_FAULT
#endif

struct kvm_memory_fault_exit {
    __u64 flags;
    __u64 gpa;
    __u64 size;
};

#ifndef KVM_NO_MEMORY_FAULT
_Static_assert(sizeof(struct kvm_memory_fault_exit) == sizeof(((struct kvm_run *)0)->memory_fault),
               "the payload of KVM_EXIT_MEMORY_FAULT is not what kvm_bindings decodes");
#endif

static int kvm_open(const char *path)
{
    int fd;

    do
        fd = open(path, O_RDWR | O_CLOEXEC);
    while (fd < 0 && errno == EINTR);
    return fd < 0 ? -errno : fd;
}

static int kvm_close(int fd)
{
    return close(fd) < 0 ? -errno : 0; /* never repeated: Linux has closed it even on EINTR */
}

static int kvm_ioctl_int(int fd, unsigned long request, unsigned long argument)
{
    int result;

    do
        result = ioctl(fd, request, argument);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : result;
}

static int kvm_ioctl_ptr(int fd, unsigned long request, void *argument)
{
    return kvm_ioctl_int(fd, request, (unsigned long)argument);
}

static int kvm_run_once(int fd, struct kvm_run *run)
{
    if (ioctl(fd, KVM_RUN, 0UL) == 0)
        return (int)run->exit_reason;
    if ((errno == EFAULT || errno == EHWPOISON) && run->exit_reason == KVM_EXIT_MEMORY_FAULT)
        return KVM_EXIT_MEMORY_FAULT; /* the one exit that is reported as an error */
    if (errno != EINTR && errno != EAGAIN) /* EAGAIN: a vCPU woken before it was started */
        return -errno;
    run->exit_reason = KVM_EXIT_INTR; /* immediate_exit leaves the reason of the exit before */
    return KVM_EXIT_INTR;
}

static int kvm_map_shared(int fd, size_t size, void **address)
{
    *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return *address == MAP_FAILED ? -errno : 0;
}

static int kvm_detach_shared(void *address, size_t size)
{
    /* In one step: at no moment is there a hole that another thread's mmap could fill. */
    void *result = mmap(address, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    return result == MAP_FAILED ? -errno : 0;
}

static int kvm_unmap_shared(void *address, size_t size)
{
    return munmap(address, size) < 0 ? -errno : 0;
}

static void kvm_kick_handler(int signal_number)
{
    (void)signal_number; /* to have interrupted the system call is all that was wanted */
}

static int kvm_default_kick_signal(void)
{
    return SIGRTMIN; /* not a constant: libc keeps the first real-time signals for itself */
}

static int kvm_install_kick_handler(int signal_number)
{
    struct sigaction action, present;

    if (sigaction(signal_number, NULL, &present) < 0)
        return -errno;
    /* One that we were started to ignore is nobody's either. */
    if ((present.sa_flags & SA_SIGINFO) ||
        (present.sa_handler != SIG_DFL && present.sa_handler != SIG_IGN &&
         present.sa_handler != kvm_kick_handler))
        return -EBUSY;
    memset(&action, 0, sizeof(action));
    action.sa_handler = kvm_kick_handler; /* no SA_RESTART: KVM_RUN must return */
    sigemptyset(&action.sa_mask);
    return sigaction(signal_number, &action, NULL) < 0 ? -errno : 0;
}

static int kvm_signal_thread(int native_thread_id, int signal_number)
{
    return syscall(SYS_tgkill, getpid(), native_thread_id, signal_number) < 0 ? -errno : 0;
}

struct kvm_coalesced_run {
    __u64 phys_addr;
    __u32 len;
    __u32 pio;
    __u32 count;
    __u8 data[KVM_COALESCED_MMIO_MAX * sizeof(((struct kvm_coalesced_mmio *)0)->data)];
};

/*
 * The kernel adds at `last` (any vCPU, under a lock of its own); one reader at a time takes from
 * `first`. Full is last + 1 == first, so an entry is given back only after it was copied.
 * Returns the number of entries taken: 0 when the ring is empty.
 */
static int kvm_take_coalesced(struct kvm_coalesced_mmio_ring *ring, struct kvm_coalesced_run *run)
{
    const __u32 last = __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE);
    __u32 first = ring->first;
    __u8 *end = run->data;

    run->count = 0;
    if (first >= KVM_COALESCED_MMIO_MAX || last >= KVM_COALESCED_MMIO_MAX)
        return -EINVAL;
    while (first != last) {
        const struct kvm_coalesced_mmio *entry = &ring->coalesced_mmio[first];

        if (entry->len > sizeof(entry->data))
            return -EINVAL;
        if (run->count == 0) {
            run->phys_addr = entry->phys_addr;
            run->len = entry->len;
            run->pio = entry->pio;
        } else if (entry->phys_addr != run->phys_addr || entry->len != run->len ||
                   entry->pio != run->pio) {
            break;
        }
        memcpy(end, entry->data, entry->len);
        end += entry->len;
        run->count++;
        first = (first + 1) % KVM_COALESCED_MMIO_MAX;
    }
    __atomic_store_n(&ring->first, first, __ATOMIC_RELEASE);
    return (int)run->count;
}
