"""The system calls that a program may not make, as a seccomp filter.

Namespaces hide the machine; this takes away what they do not cover: other processes (so that the limits of one process
are the limits of the program, for root too, whom ``RLIMIT_NPROC`` does not bind), the limits and the priority of the
supervisor (which has to see what the program uses), sockets (``AF_VSOCK`` reaches past a network namespace),
namespaces within namespaces, memory that no limit counts, and parts of the kernel with a history of holes.

Source: https://www.kernel.org/doc/html/latest/userspace-api/seccomp_filter.html; numbers from the kernel's
arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

import errno
import platform
import struct

AUDIT_ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
CLONE_THREAD = 0x10000
# name: number on x86_64, on aarch64; None where there is no such call
FORBIDDEN: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "setpriority": (141, 140),  # its "self" may be the process group, to which the supervisor belongs
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # network
    "socket": (41, 198),
    # memory outside of the address space
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    # the kernel's rarely needed parts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "syslog": (103, 116),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
# Calls that take a process as first argument, where 0 is the caller: a program may change itself and nobody else.
ON_ITSELF_ONLY: dict[str, tuple[int, int]] = {
    "prlimit64": (302, 261),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
}

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = (
    0x20,
    0x15,
    0x35,
    0x45,
    0x06,
)  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, JGE, JSET, BPF_RET|K
NUMBER, ARCH, ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; the first argument's low half, both little-endian
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000


def machine_is_known() -> bool:
    """Whether there is a filter for this machine."""
    return platform.machine() in AUDIT_ARCHES


def filter_program(machine: str) -> bytes:
    """The filter for one kind of machine, as an array of ``struct sock_filter``.

    Forbidden calls fail with ``EPERM``. Threads may be made, processes not. A process may change its own limits (the C
    library's ``getrlimit`` and ``setrlimit`` are ``prlimit64`` on process 0), not those of another one. ``clone3``,
    whose flags a filter cannot see, is "not implemented", upon which the C library takes ``clone``. Calls of another
    architecture kill the program.
    """
    column = list(AUDIT_ARCHES).index(machine)
    denied, absent = ERROR | errno.EPERM, ERROR | errno.ENOSYS
    steps = [(LOAD, 0, 0, ARCH), (EQUAL, 1, 0, AUDIT_ARCHES[machine]), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER)]
    if machine == "x86_64":  # the x32 calls are the same under other numbers
        steps += [(AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, absent)]
    steps += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, absent)]
    for numbers in FORBIDDEN.values():
        if (number := numbers[column]) is not None:
            steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, denied)]
    for numbers in ON_ITSELF_ONLY.values():
        steps += [(EQUAL, 0, 4, numbers[column]), (LOAD, 0, 0, ARGUMENT)]
        steps += [(EQUAL, 1, 0, 0), (RETURN, 0, 0, denied), (LOAD, 0, 0, NUMBER)]
    steps += [(EQUAL, 0, 3, CLONE[machine]), (LOAD, 0, 0, ARGUMENT), (ANY_BIT, 1, 0, CLONE_THREAD)]
    steps += [(RETURN, 0, 0, denied), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
