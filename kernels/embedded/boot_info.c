/*
 * What the loader told us, by whichever protocol.
 *
 * struct boot_params comes from the kernel's own header. hvm_start_info has no header outside
 * Xen's sources; it is declared here as xen/include/public/arch-x86/hvm/start_info.h draws it.
 */

#include <asm/bootparam.h>

#include "kernel.h"

#define XEN_HVM_START_MAGIC_VALUE 0x336ec578

struct hvm_start_info {
        u32 magic;
        u32 version;
        u32 flags;
        u32 nr_modules;
        u64 modlist_paddr;
        u64 cmdline_paddr;
        u64 rsdp_paddr;
        u64 memmap_paddr;               /* this and what follows: from version 1 */
        u32 memmap_entries;
        u32 reserved;
};
_Static_assert(sizeof(struct hvm_start_info) == 56, "start_info.h");

struct hvm_modlist_entry {
        u64 paddr;
        u64 size;
        u64 cmdline_paddr;
        u64 reserved;
};
_Static_assert(sizeof(struct hvm_modlist_entry) == 32, "start_info.h");

struct hvm_memmap_table_entry {
        u64 addr;
        u64 size;
        u32 type;
        u32 reserved;
};
_Static_assert(sizeof(struct hvm_memmap_table_entry) == 24, "start_info.h");

#define SETUP_HEADER_MAGIC 0x53726448   /* "HdrS": Documentation/arch/x86/boot.rst */

#define MAX_RANGES (sizeof(boot_info.ranges) / sizeof(boot_info.ranges[0]))

struct boot_info boot_info;

static void add_range(u64 base, u64 size, u32 type)
{
        struct memory_range *range = &boot_info.ranges[boot_info.range_count++];

        range->base = base;
        range->size = size;
        range->type = type;
}

static const char *read_start_info(const struct hvm_start_info *info)
{
        const struct hvm_memmap_table_entry *memmap = (void *)info->memmap_paddr;
        const struct hvm_modlist_entry *modules = (void *)info->modlist_paddr;

        if (info->magic != XEN_HVM_START_MAGIC_VALUE)
                return "hvm_start_info has a wrong magic";
        if (info->cmdline_paddr)
                boot_info.cmdline = (const char *)info->cmdline_paddr;
        if (info->nr_modules) {         /* the first module is the initrd */
                boot_info.initrd_base = modules[0].paddr;
                boot_info.initrd_size = modules[0].size;
        }
        if (info->version >= 1)
                for (u32 i = 0; i < info->memmap_entries && i < MAX_RANGES; i++)
                        add_range(memmap[i].addr, memmap[i].size, memmap[i].type);
        return 0;
}

static const char *read_boot_params(const struct boot_params *params)
{
        const struct setup_header *hdr = &params->hdr;
        u64 cmdline = (u64)params->ext_cmd_line_ptr << 32 | hdr->cmd_line_ptr;

        if (hdr->header != SETUP_HEADER_MAGIC)
                return "boot_params.hdr.header is not HdrS";
        if (cmdline)
                boot_info.cmdline = (const char *)cmdline;
        boot_info.initrd_base = (u64)params->ext_ramdisk_image << 32 | hdr->ramdisk_image;
        boot_info.initrd_size = (u64)params->ext_ramdisk_size << 32 | hdr->ramdisk_size;
        for (u32 i = 0; i < params->e820_entries && i < MAX_RANGES; i++)
                add_range(params->e820_table[i].addr, params->e820_table[i].size,
                          params->e820_table[i].type);
        return 0;
}

const char *read_boot_info(u32 protocol, u64 table)
{
        static const char *const names[] = {
                [PROTOCOL_PVH] = "PVH, hvm_start_info",
                [PROTOCOL_LINUX32] = "Linux 32-bit, boot_params",
                [PROTOCOL_LINUX64] = "Linux 64-bit, boot_params",
        };

        boot_info.protocol = names[protocol];
        boot_info.table = table;
        boot_info.cmdline = "";
        if (protocol == PROTOCOL_PVH)
                return read_start_info((const void *)table);
        return read_boot_params((const void *)table);
}
