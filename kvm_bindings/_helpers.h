/*
 * What _helpers.c adds to the kernel's ABI, as cffi reads it.
 *
 * Every function returns -errno on failure, never sets errno for Python to fetch, and repeats a
 * call that a signal interrupted: all but kvm_run_once, for which that is how it is stopped.
 */

int kvm_open(const char *path);
int kvm_close(int fd);
int kvm_ioctl_int(int fd, unsigned long request, unsigned long argument);
int kvm_ioctl_ptr(int fd, unsigned long request, void *argument);

/* One KVM_RUN: the exit reason, or -errno. A signal or immediate_exit gives KVM_EXIT_INTR. */
int kvm_run_once(int fd, struct kvm_run *run);

/* The vCPU's shared pages: mapped, given back (zeros stay in their place), unmapped. */
int kvm_map_shared(int fd, size_t size, void **address);
int kvm_detach_shared(void *address, size_t size);
int kvm_unmap_shared(void *address, size_t size);

/* A signal whose handler does nothing, not even in Python: it only ends a blocking KVM_RUN. */
int kvm_default_kick_signal(void);
int kvm_install_kick_handler(int signal_number);
int kvm_signal_thread(int native_thread_id, int signal_number);

/* Consecutive ring entries with the same address, length and pio flag, their data end to end. */
struct kvm_coalesced_run {
    __u64 phys_addr;
    __u32 len;
    __u32 pio;
    __u32 count;
    __u8 data[...];
};
int kvm_take_coalesced(struct kvm_coalesced_mmio_ring *ring, struct kvm_coalesced_run *run);

/* The payload of KVM_EXIT_MEMORY_FAULT, in kvm_run since Linux 6.8. */
struct kvm_memory_fault_exit {
    __u64 flags;
    __u64 gpa;
    __u64 size;
};
