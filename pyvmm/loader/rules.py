"""Every rule that a kernel image, initrd or command line can break, by a key of its own.

The key is the ``rule`` of the error that is raised, for programs; the text is for people, and says
where the rule comes from. It is here and not beside the checks because a boot that goes well needs
none of it.
"""

from __future__ import annotations

from typing import NamedTuple


class Rule(NamedTuple):
    """What must hold, and the specification that says so."""

    text: str
    source: str


_ELF_HEADER = "System V gABI, chapter 4"
_ELF_LOADING = "System V gABI, chapter 5"
_PSABI = "x86-64 psABI 4.1"
_MULTIBOOT = "Multiboot Specification 0.6.96, 3.1"
_LAYOUT = "pyvmm, arch/x86_64/layout.py"
_MEMORY = "pyvmm, memory.py"
_BOOT_RST = "Documentation/arch/x86/boot.rst, "
_NEXT_ARG = "Linux 6.12, lib/cmdline.c, next_arg()"
_VIRTIO_MMIO = "Linux 6.12, drivers/virtio/virtio_mmio.c, vm_cmdline_set()"
_PE = "Microsoft, PE Format, "
_UKI = "UAPI.5, Unified Kernel Image"
_ZBOOT = "Linux, drivers/firmware/efi/libstub/zboot-header.S"
_ARM64 = "Documentation/arch/arm64/booting.rst"
_DTSPEC = "Devicetree Specification 0.4, 5.2"
_RISCV64 = "Documentation/arch/riscv/boot-image-header.rst"

RULES: dict[str, Rule] = {
    # Files
    "file-read": Rule("the whole file can be read while it is loaded", "POSIX, pread()"),
    # What the file is
    "image-empty": Rule("the file has at least one byte", "pyvmm, loader/image.py"),
    "image-format": Rule("the file is of a format that can be booted", "pyvmm, loader/image.py"),
    "image-machine": Rule("the kernel is for x86-64", "pyvmm, loader/image.py"),
    "image-efi": Rule(
        "an EFI program is a Linux kernel as well, or has one in it", "pyvmm, loader/image.py"
    ),
    # What it is wrapped in
    "unpack-layers": Rule("there are at most 4 layers around a kernel", "pyvmm, loader/unpack.py"),
    "file-stream": Rule(
        "a compressed file can be decompressed to its end", "the compression's own format"
    ),
    "file-stream-size": Rule("what is in a compressed file fits into guest memory", _MEMORY),
    "zboot-header": Rule("the file holds the whole header", _ZBOOT),
    "zboot-payload": Rule("the payload is in the file, and behind the header", _ZBOOT),
    "uki-linux": Rule("the section .linux has a kernel in it", _UKI),
    "uki-section-twice": Rule("each section is there at most once in a profile", _UKI),
    # PE
    "pe-dos-header": Rule("the file holds the whole MS-DOS header", _PE + "MS-DOS Stub"),
    "pe-signature": Rule('there is "PE" where the MS-DOS header says', _PE + "Signature"),
    "pe-file-header": Rule("the file holds the whole COFF file header", _PE + "COFF File Header"),
    "pe-optional-header-size": Rule(
        "the optional header reaches to Subsystem", _PE + "Optional Header"
    ),
    "pe-optional-header": Rule("the file holds the whole optional header", _PE + "Optional Header"),
    "pe-optional-header-magic": Rule(
        "the optional header is that of PE32 or PE32+", _PE + "Optional Header"
    ),
    "pe-section-table": Rule("the file holds the whole section table", _PE + "Section Table"),
    "pe-section": Rule("the file holds all of a section that is used", _PE + "Section Table"),
    # Other machines' Images
    "arm64-header-size": Rule("the file holds the whole header, 64 bytes", _ARM64),
    "arm64-magic": Rule('there is "ARM\\x64" at 0x38', _ARM64),
    "riscv64-header-size": Rule("the file holds the whole header, 64 bytes", _RISCV64),
    "riscv64-magic2": Rule('there is "RSC\\x05" at 0x38', _RISCV64),
    "riscv64-image-size": Rule("image_size is not 0", _RISCV64),
    "image-base-alignment": Rule("the base is a multiple of 2 MiB", _ARM64),
    "image-ram": Rule("the Image and all that it needs behind it are in guest RAM", _MEMORY),
    # Devicetrees
    "fdt-header-size": Rule("the file holds the whole header, 40 bytes", _DTSPEC),
    "fdt-magic": Rule("the file begins with d0 0d fe ed", _DTSPEC),
    "fdt-size-limit": Rule("it has at most 2 MiB", _ARM64),
    "fdt-totalsize": Rule("the file holds totalsize bytes, the header among them", _DTSPEC),
    "fdt-version": Rule("it is of version 17, or can be read as that", _DTSPEC),
    "fdt-block": Rule("each of its blocks is aligned, and within totalsize", _DTSPEC),
    "fdt-alignment": Rule("it is placed at a multiple of 8", _ARM64),
    "fdt-ram": Rule("it is placed in guest RAM", _MEMORY),
    "fdt-bootargs": Rule(
        "a command line in it is printable ASCII", "Devicetree Specification 0.4, 2.2.4"
    ),
    # ELF
    "elf-magic": Rule("the file begins with 7f 45 4c 46", _ELF_HEADER),
    "elf-header-size": Rule(
        "the file holds the whole ELF header: 64 bytes, or 52 of ELF32", _ELF_HEADER
    ),
    "elf-class": Rule("EI_CLASS is ELFCLASS64 or ELFCLASS32", _ELF_HEADER),
    "elf-data": Rule("EI_DATA is ELFDATA2LSB or ELFDATA2MSB", _ELF_HEADER),
    "elf-big-endian": Rule("x86 is little-endian: EI_DATA is ELFDATA2LSB", _PSABI),
    "elf-machine": Rule("e_machine is EM_X86_64, or EM_386", _PSABI),
    "elf-class-machine": Rule("x86-64 goes with ELF64 here, i386 with ELF32", _PSABI),
    "elf-type": Rule("e_type is ET_EXEC or ET_DYN", _ELF_HEADER),
    "elf-phnum-none": Rule("there is a program header", _ELF_LOADING),
    "elf-phnum-many": Rule("there are at most 256 program headers", "pyvmm, loader/elf.py"),
    "elf-phentsize": Rule(
        "e_phentsize is the size of a program header: 56, or 32 of ELF32",
        _ELF_LOADING,
    ),
    "elf-phoff": Rule("the program headers are behind the ELF header", _ELF_LOADING),
    "elf-phdrs-truncated": Rule("the file holds all program headers", _ELF_LOADING),
    "elf-interpreter": Rule("a kernel asks for no interpreter (PT_INTERP)", _ELF_LOADING),
    "elf-filesz": Rule("p_filesz is not above p_memsz", _ELF_LOADING),
    "elf-address-overflow": Rule("a segment ends within the address space", _ELF_LOADING),
    "elf-segment-truncated": Rule("the file holds all of each segment", _ELF_LOADING),
    "elf-segment-low": Rule(
        "no segment is below the first MiB, where the tables for booting are",
        _LAYOUT,
    ),
    "elf-segment-overlap": Rule("no two segments overlap in physical memory", _ELF_LOADING),
    "elf-no-segment": Rule("there is a PT_LOAD with something in it", _ELF_LOADING),
    "elf-segment-ram": Rule("each segment is in guest RAM", _MEMORY),
    "elf-entry-outside": Rule(
        "e_entry is in a segment, by physical or virtual address", _ELF_HEADER
    ),
    "elf-entry-low": Rule(
        "e_entry is not below the lowest address that a segment may have", "pyvmm, loader/elf.py"
    ),
    "elf-entry-high": Rule(
        "the entry is below 4 GiB, which is what is mapped on entry",
        _BOOT_RST + "64-bit Boot Protocol",
    ),
    # Multiboot
    "multiboot-flags": Rule(
        "the kernel demands nothing but page-aligned modules and memory information",
        _MULTIBOOT,
    ),
    "multiboot-addresses": Rule(
        "a kernel that is no ELF file gives addresses (bit 16 of flags)",
        _MULTIBOOT,
    ),
    "multiboot-load-addr": Rule(
        "load_addr is not above header_addr, and not before the file",
        _MULTIBOOT,
    ),
    "multiboot-load-end-addr": Rule(
        "load_end_addr is above load_addr, and the file holds what is between",
        _MULTIBOOT,
    ),
    "multiboot-bss-end-addr": Rule("bss_end_addr is not below load_end_addr", _MULTIBOOT),
    "multiboot-entry-addr": Rule("entry_addr is in what is loaded", _MULTIBOOT),
    "multiboot-load-low": Rule(
        "nothing is loaded below the first MiB, where the tables for booting are",
        _LAYOUT,
    ),
    "multiboot-ram": Rule("all that is loaded is in guest RAM", _MEMORY),
    "multiboot-info-ram": Rule("there is RAM for the information", _MEMORY),
    "multiboot-info-size": Rule("the information fits into its page", _LAYOUT),
    # bzImage: the setup header
    "bzimage-magic": Rule('"HdrS" stands at 0x202', _BOOT_RST + "header"),
    "bzimage-version": Rule("the boot protocol is 2.06 or later", _BOOT_RST + "version"),
    "bzimage-jump": Rule(
        "at 0x200 is a short jump forward, whose target ends the header",
        _BOOT_RST + "jump",
    ),
    "bzimage-header-length": Rule(
        "the header is long enough to say how long a command line may be",
        _BOOT_RST + "jump, cmdline_size",
    ),
    "bzimage-header-truncated": Rule("the file holds the whole of its header", _BOOT_RST + "jump"),
    "bzimage-boot-flag": Rule("boot_flag is 0xaa55", _BOOT_RST + "boot_flag"),
    "bzimage-loaded-high": Rule(
        "the protected-mode kernel is to be loaded above 1 MiB (LOADED_HIGH)",
        _BOOT_RST + "loadflags",
    ),
    "bzimage-setup-data": Rule(
        "the image does not begin a list of setup_data",
        _BOOT_RST + "setup_data",
    ),
    "bzimage-setup-sects": Rule(
        "the file holds the whole setup code and something behind it",
        _BOOT_RST + "setup_sects",
    ),
    "bzimage-syssize": Rule("there is a protected-mode kernel", _BOOT_RST + "syssize"),
    "bzimage-truncated": Rule(
        "the file holds the whole protected-mode kernel", _BOOT_RST + "syssize"
    ),
    "bzimage-xloadflags": Rule(
        "the 64-bit entry is inside the protected-mode kernel",
        _BOOT_RST + "xloadflags, XLF_KERNEL_64",
    ),
    "bzimage-handover-offset": Rule(
        "the EFI handover entry is inside the protected-mode kernel",
        _BOOT_RST + "handover_offset, xloadflags",
    ),
    "bzimage-kernel-info-bounds": Rule(
        "kernel_info is inside the protected-mode kernel",
        _BOOT_RST + "kernel_info_offset",
    ),
    "bzimage-kernel-info-magic": Rule(
        'kernel_info begins with "LToP"',
        _BOOT_RST + "Details of the kernel_info Fields, header",
    ),
    "bzimage-kernel-info-size": Rule(
        "kernel_info's sizes fit each other and the kernel",
        _BOOT_RST + "Details of the kernel_info Fields, size and size_total",
    ),
    # bzImage: decompressed on the host
    "bzimage-no-payload": Rule(
        "the header says where the compressed kernel is",
        _BOOT_RST + "payload_offset, payload_length",
    ),
    "bzimage-payload-bounds": Rule(
        "the payload is inside the protected-mode kernel",
        _BOOT_RST + "payload_offset, payload_length",
    ),
    "bzimage-payload-elf": Rule(
        "the payload is an ELF file when it is decompressed",
        _BOOT_RST + "payload_offset",
    ),
    "payload-ratio": Rule(
        "the payload is not too small for what it is said to hold", "pyvmm, loader/decompress.py"
    ),
    # bzImage: decompressed in the guest
    "bzimage-kernel-alignment": Rule(
        "kernel_alignment is a power of two", _BOOT_RST + "kernel_alignment"
    ),
    "bzimage-address-low": Rule(
        "kernel and runtime address are above the first MiB",
        _BOOT_RST + "code32_start, pref_address",
    ),
    # A compressed payload, of a bzImage or of EFI zboot
    "payload-compression": Rule(
        "it begins as one of seven compressions does", _BOOT_RST + "payload_offset"
    ),
    "payload-library": Rule("the library for its compression is installed", "pyproject.toml"),
    "payload-size": Rule(
        "it is to become neither nothing, nor more than guest memory", "scripts/Makefile.lib"
    ),
    "payload-stream": Rule("it can be decompressed", "the compression's own format"),
    "payload-size-mismatch": Rule(
        "it becomes as many bytes as are recorded behind it", "scripts/Makefile.lib"
    ),
    # bzImage
    "bzimage-address-high": Rule(
        "the kernel is below 4 GiB", _BOOT_RST + "code32_start, pref_address"
    ),
    "bzimage-init-size": Rule(
        "there is RAM for what the kernel needs to start",
        _BOOT_RST + "init_size",
    ),
    # KASLR
    "kaslr-no-relocations": Rule(
        "there are relocations behind the ELF file",
        "Linux 6.12, arch/x86/boot/compressed/misc.c, handle_relocations()",
    ),
    "kaslr-table-size": Rule(
        "the relocations are 32-bit numbers",
        "Linux 6.12, arch/x86/boot/compressed/misc.c, handle_relocations()",
    ),
    "kaslr-table-lists": Rule(
        "they are two or three lists, with a zero before each",
        "Linux 6.12, arch/x86/boot/compressed/misc.c, handle_relocations()",
    ),
    "kaslr-relocation-bounds": Rule(
        "each relocation is inside the kernel",
        "Linux 6.12, arch/x86/boot/compressed/misc.c, handle_relocations()",
    ),
    "kaslr-link-address": Rule(
        "the kernel is linked to __START_KERNEL_map and its physical address",
        "Linux 6.12, arch/x86/kernel/vmlinux.lds.S",
    ),
    "kaslr-kernel-alignment": Rule(
        "kernel_alignment is a power of two, 2 MiB or more",
        "Linux 6.12, arch/x86/include/asm/boot.h, MIN_KERNEL_ALIGN",
    ),
    "kaslr-physical-room": Rule(
        "there is RAM to move the kernel in",
        "Linux 6.12, arch/x86/boot/compressed/kaslr.c, find_random_phys_addr()",
    ),
    "kaslr-virtual-room": Rule(
        "there are addresses to move the kernel in",
        "Linux 6.12, arch/x86/boot/compressed/kaslr.c, find_random_virt_addr()",
    ),
    "kaslr-base": Rule(
        "a base that was asked for is one that could be chosen by chance",
        "Linux 6.12, arch/x86/boot/compressed/kaslr.c",
    ),
    # Boot parameters
    "bios-ram": Rule("there is RAM for the real-mode vectors and the stub", "SDM 3B 21.1.4"),
    "gdt-ram": Rule("there is RAM for the GDT", "SDM 3A 3.5.1"),
    "page-tables-ram": Rule("there is RAM for the page tables", "SDM 3A 4.5"),
    "boot-params-ram": Rule("there is RAM for boot_params", "Documentation/arch/x86/zero-page.rst"),
    "boot-params-header": Rule(
        "the setup header fits in boot_params", _BOOT_RST + "The kernel_info"
    ),
    "boot-params-e820-entries": Rule(
        "the memory map fits in boot_params", "Documentation/arch/x86/zero-page.rst, e820_table"
    ),
    "setup-data-ram": Rule("there is RAM for the list of setup_data", _BOOT_RST + "setup_data"),
    "setup-data-room": Rule("the list of setup_data ends before the command line", _LAYOUT),
    "pvh-start-info-ram": Rule(
        "there is RAM for start_info", "Xen, public/arch-x86/hvm/start_info.h"
    ),
    "pvh-modlist-ram": Rule(
        "there is RAM for the module list", "Xen, public/arch-x86/hvm/start_info.h"
    ),
    "pvh-memmap-ram": Rule(
        "there is RAM for the memory map", "Xen, public/arch-x86/hvm/start_info.h"
    ),
    "pvh-modlist-room": Rule("the modules fit in the page of start_info", _LAYOUT),
    "pvh-strings-ram": Rule(
        "there is RAM for the modules' command lines", "Xen, public/arch-x86/hvm/start_info.h"
    ),
    "pvh-strings-room": Rule("the modules' command lines fit in the page of start_info", _LAYOUT),
    "pvh-memmap-room": Rule("the memory map fits in the page of start_info", _LAYOUT),
    # Initrd
    "initrd-read": Rule("the whole file can be read", "POSIX, pread()"),
    "initrd-room": Rule(
        "there is room in RAM above the kernel",
        _BOOT_RST + "init_size, ramdisk_image",
    ),
    "initrd-addr-max": Rule(
        "there is room below the highest address that the kernel allows",
        _BOOT_RST + "initrd_addr_max",
    ),
    # Command line, placed
    "cmdline-encoding": Rule("text can be encoded in UTF-8", "pyvmm, loader/cmdline.py"),
    "cmdline-nul": Rule("a NUL is at the end only", _BOOT_RST + "The Kernel Command Line"),
    "cmdline-size": Rule("the kernel takes all of it", _BOOT_RST + "cmdline_size"),
    # Command line, built
    "cmdline-capacity": Rule("there is room for the NUL", _BOOT_RST + "The Kernel Command Line"),
    "cmdline-room": Rule(
        "the line and its NUL fit in what was given for them", "pyvmm, loader/cmdline_builder.py"
    ),
    "cmdline-ascii": Rule("there is printable ASCII only", "pyvmm, loader/cmdline_builder.py"),
    "cmdline-key-empty": Rule("a parameter has a name", _NEXT_ARG),
    "cmdline-key-space": Rule("a parameter's name has no space in it", _NEXT_ARG),
    "cmdline-key-equals": Rule("a parameter's name has no = in it", _NEXT_ARG),
    "cmdline-key-quote": Rule("a parameter's name has no quote in it", _NEXT_ARG),
    "cmdline-value-quote": Rule("a value has no quote in it", _NEXT_ARG),
    "cmdline-values-none": Rule(
        "a list of values has one or more", "pyvmm, loader/cmdline_builder.py"
    ),
    "cmdline-quote-open": Rule("each quote has one that closes it", _NEXT_ARG),
    "cmdline-init-quote": Rule("an argument of init has no quote in it", _NEXT_ARG),
    "cmdline-separator": Rule(
        "there is one -- at most, between parameters and init's arguments",
        "Linux 6.12, kernel/params.c, parse_args()",
    ),
    "cmdline-virtio-size": Rule("a virtio device has registers", _VIRTIO_MMIO),
    "cmdline-virtio-address": Rule(
        "the end of a virtio device's registers is a signed 64-bit number", _VIRTIO_MMIO
    ),
    "cmdline-virtio-irq": Rule(
        "a virtio device has an interrupt, an unsigned 32-bit number other than 0", _VIRTIO_MMIO
    ),
    "cmdline-virtio-id": Rule("a virtio device's number is one of 31 bits", _VIRTIO_MMIO),
    # Entering
    "protocol-entry": Rule(
        "the image has an entry for the protocol that was asked for", "pyvmm, boot/"
    ),
}
