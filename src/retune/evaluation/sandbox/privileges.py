"""How a process drops its privileges: namespaces, Landlock, seccomp, limits."""

from __future__ import annotations

import ctypes
import itertools
import os
import resource
import struct
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    0x20000,
    0x4000000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_NO_NEW_PRIVS, _SET_SECCOMP, _SET_DUMPABLE = 38, 22, 4
_READ_SEARCH = 1 << 2  # CAP_DAC_READ_SEARCH
_ROOT = os.getuid() == 0
# No filter is written for other machines, so nothing runs there
_MACHINE = ("x86_64", "aarch64").index(os.uname().machine)
_AUDIT = (0xC000003E, 0xC00000B7)
_SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/lib32", "/bin")

# Syscall numbers (x86_64, aarch64; None where there is no such call) that a program which only computes never needs.
_FORBIDDEN: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "sendto": (44, 206), "sendmsg": (46, 211),
    "sendmmsg": (307, 269), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "setsid": (112, 157), "setpgid": (109, 154), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "prlimit64": (302, 261),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264), "fanotify_init": (300, 262), "memfd_create": (319, 279), "shmget": (29, 194),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "prctl": (157, 167), "personality": (135, 92),
    "modify_ldt": (154, None), "iopl": (172, None), "ioperm": (173, None), "quotactl": (179, 60), "acct": (163, 89),
    "syslog": (103, 116), "vhangup": (153, 58), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "sethostname": (170, 161), "setdomainname": (171, 162),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    # IPC objects belong to a user, not to a file: without an IPC namespace they would be shared with retune.
    "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191), "mq_unlink": (241, 181),
    "mq_timedsend": (242, 182), "mq_timedreceive": (243, 183), "mq_notify": (244, 184), "mq_getsetattr": (245, 185),
    # Landlock does not ask about these, so a file's owner could change files outside.
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "truncate": (76, 45), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "inotify_init": (253, None), "inotify_init1": (294, 26),
    # What all programs of a machine share: its disks, the number of asynchronous requests.
    "sync": (162, 81), "syncfs": (306, 267), "io_setup": (206, 0),
    # How a process can have itself killed, which would look as if the machine had done it: timers that send any signal, and
    # a lower limit of CPU time.
    "timer_create": (222, 107), "setrlimit": (160, 164),
    # Parts of the kernel with a history of vulnerabilities, which no computation needs.
    "seccomp": (317, 277), "splice": (275, 76), "tee": (276, 77), "vmsplice": (278, 75), "uselib": (134, None),
    "lookup_dcookie": (212, 18), "remap_file_pages": (216, 234), "nfsservctl": (180, 42),
}  # fmt: skip
# From 424 on both have the same numbers. Of these only close_range, faccessat2, epoll_pwait2 and futex_waitv
# are allowed. All others, including those of future kernels, return ENOSYS, for which C libraries have a fallback.
_NEW_CALLS, _ALLOWED_NEW_CALLS = 424, (436, 439, 441, 449)
# Calls that are forbidden by the bits or the value of one argument: name, numbers, which argument, bits, values.
# clone: no new process, only threads, so that a limit of memory counts all of an answer; fcntl and ioctl: a pipe can
# be told to send any signal to any process of the same user.
_CLONE_THREAD, _CLONE_NEW = 0x10000, 0x7E020000
_FCNTL = (8, 10, 15, 1024, 1026, 1031)  # F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ
_O_TRUNC = 0x200
_IOCTL = (0x8901, 0x8902, 0x5452, 0x5412, 0x541C)  # FIOSETOWN, SIOCSPGRP, FIOASYNC, TIOCSTI, TIOCLINUX
_NUMBERS = {
    "pivot_root": (155, 41), "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445), "landlock_restrict_self": (446, 446),
}  # fmt: skip


def drop(job: dict[str, Any], kept: list[int]) -> None:
    """Give up every privilege, in an order in which each step is still permitted.

    Args:
        job: isolation, limits and folders; see `runner`.
        kept: the file descriptors that stay open, besides 0 to 2.

    Raises:
        OSError: if the kernel refuses a step.

    """
    limits = job["limits"]
    filters = job["isolation"] == "filters"
    if filters:
        os.chdir("/")
    else:
        _own_file_system(job["scratch"], job["python"], limits["scratch_mib"])
    bounds = [2, *sorted(kept), 65536]
    for before, after in itertools.pairwise(bounds):
        os.closerange(before + 1, after)
    if _ROOT:
        _drop_privileges(keep_reading=filters)
    _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", _SET_DUMPABLE, 0, 0, 0, 0)  # a core pattern that is a pipe would take a crash out of here
    _keep_capabilities(_READ_SEARCH if filters and _ROOT else 0)
    truncates = True
    if filters:
        truncates = _landlock([*_SYSTEM_FOLDERS, *job["python"], "/dev/null", "/dev/urandom"])
    _limit(limits)
    forbid(truncates)


def unshare_namespaces() -> None:
    """Enter new network, process, mount and IPC namespaces; a process id namespace takes effect for children."""
    away = _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS
    if _ROOT:
        _call("unshare", away)
        return
    uid, gid = os.getuid(), os.getgid()
    _call("unshare", away | _NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _own_file_system(root: str, python: list[str], scratch_mib: int) -> None:
    """Move into a file system that holds the Python installation, read-only, and an empty /scratch in memory."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    shown: list[str] = []
    for folder in [*_SYSTEM_FOLDERS, *python]:
        if any(folder == above or folder.startswith(above + "/") for above in shown) or not os.path.isdir(
            folder
        ):
            continue
        inside = root + folder
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        if os.path.islink(folder):
            os.symlink(os.readlink(folder), inside)
            continue
        os.makedirs(inside)
        _mount(folder, inside, None, _MS_BIND | _MS_REC)
        _read_only(inside, recursive=True)
        shown.append(folder)
    os.mkdir(root + "/dev")
    for device in ("/dev/null", "/dev/urandom"):
        os.close(os.open(root + device, os.O_CREAT | os.O_WRONLY))
        _mount(device, root + device, None, _MS_BIND)
    os.mkdir(root + "/scratch")
    _mount(
        "tmpfs",
        root + "/scratch",
        "tmpfs",
        _MS_NOSUID | _MS_NODEV,
        f"size={scratch_mib}m,nr_inodes=1000,mode=777",
    )
    _read_only(root, recursive=False)
    os.chdir(root)
    _syscall("pivot_root", b".", b".")
    _call("umount2", b".", 2)  # MNT_DETACH: until here the old root is mounted over the new one
    os.chdir("/scratch")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [text.encode() if text is not None else None for text in (source, target, kind, data)]
    _call("mount", texts[0], texts[1], texts[2], flags, texts[3])


def _read_only(target: str, recursive: bool) -> None:
    attributes = struct.pack("QQQQ", 1 | 2, 0, 0, 0)  # set MOUNT_ATTR_RDONLY and _NOSUID
    _syscall("mount_setattr", -100, target.encode(), 0x8000 if recursive else 0, attributes, len(attributes))


def _drop_privileges(keep_reading: bool) -> None:
    """Switch to a user that owns nothing and runs no other program, so that limits count only this one.

    Without its own file system the program must still read a Python that may lie in a private folder: it then keeps
    the capability to read, and Landlock restricts the paths.
    """
    if keep_reading:
        _call("prctl", 8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
    os.setgroups([])
    problem = OSError()
    for number in (1_000_000 + int.from_bytes(os.urandom(3), "big"), 65534):
        try:
            os.setresgid(number, number, number)
            os.setresuid(number, number, number)
            return
        except OSError as error:
            problem = error
    raise problem


def _keep_capabilities(kept: int) -> None:
    """Drop every capability but those of the bit mask `kept`."""
    header = struct.pack("Ii", 0x20080522, 0)
    _call("capset", header, struct.pack("IIIIII", kept, kept, 0, 0, 0, 0))


def _landlock(readable: list[str]) -> bool:
    """Allow reading below `readable` and writing /dev/null; opening or creating any other file is refused.

    Return whether files may be opened with O_TRUNC: before its third version (Linux 6.2) Landlock lets those be emptied
    that may only be read.
    """
    version = _LIBC.syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        raise OSError(ctypes.get_errno(), "Landlock is not there")
    files = (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1
    ports, scopes = 3, 3  # binding and connecting; abstract sockets of, and signals to, the outside
    ruled = struct.pack("QQQ", files, ports, scopes)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _syscall("landlock_create_ruleset", ruled, len(ruled), 0)
    for path in readable:
        if not os.path.exists(path):
            continue
        # 1 maps, 2 writes, 4 reads, 8 lists
        rights = 1 | 4 | 8 if os.path.isdir(path) else 4 | 2 * (path == "/dev/null")
        descriptor = os.open(path, os.O_PATH)
        _syscall("landlock_add_rule", ruleset, 1, struct.pack("=Qi", rights, descriptor), 0)
        os.close(descriptor)
    _syscall("landlock_restrict_self", ruleset, 0)
    os.close(ruleset)
    return bool(version >= 3)


def cpu_seconds(limits: dict[str, Any]) -> int:
    """Return the CPU time after which the kernel kills a process of these limits."""
    return int(limits["seconds"]) + 1


def _limit(limits: dict[str, Any]) -> None:
    for kind, value in (
        (resource.RLIMIT_CPU, cpu_seconds(limits)),
        (resource.RLIMIT_AS, limits["memory_mib"] << 20),
        (resource.RLIMIT_FSIZE, limits["file_mib"] << 20),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, limits["threads"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        resource.setrlimit(kind, (value, value))


def forbid(truncates: bool = True) -> None:
    """Install the seccomp filter: what `_FORBIDDEN` names fails with EPERM, and O_TRUNC if it does not `truncate`."""
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill = (answer, 0, 0, 0x7FFF0000), (answer, 0, 0, 0x80000000)
    refuse, no_such = (answer, 0, 0, 0x00050000 | 1), (answer, 0, 0, 0x00050000 | 38)
    code = [(load, 0, 0, 4), (equal, 1, 0, _AUDIT[_MACHINE]), kill, (load, 0, 0, 0)]
    code += [(at_least, 0, 1, 0x40000000), refuse]  # x86's second table of calls (x32)
    for numbers in _FORBIDDEN.values():
        number = numbers[_MACHINE]
        if number is not None:
            code += [(equal, 0, 1, number), refuse]
    for number in _ALLOWED_NEW_CALLS:
        code += [(equal, 0, 1, number), allow]
    code += [(at_least, 0, 1, _NEW_CALLS), no_such]
    first, second, third = 16, 24, 32  # offsets of the low halves of the arguments
    clone = [
        (load, 0, 0, first),
        (any_bit, 0, 1, _CLONE_NEW),
        refuse,
        (any_bit, 1, 0, _CLONE_THREAD),
        refuse,
        allow,
    ]
    blocks = [] if truncates else [
        ((2, None), [(load, 0, 0, second), (any_bit, 0, 1, _O_TRUNC), refuse, allow]),
        ((257, 56), [(load, 0, 0, third), (any_bit, 0, 1, _O_TRUNC), refuse, allow]),
        ((85, None), [refuse]),  # creat
    ]  # fmt: skip
    for numbers, block in (
        *blocks,
        ((56, 220), clone),
        ((72, 25), [(load, 0, 0, second), *(line for value in _FCNTL for line in ((equal, 0, 1, value), refuse)), allow]),
        ((16, 29), [(load, 0, 0, second), *(line for value in _IOCTL for line in ((equal, 0, 1, value), refuse)), allow]),
    ):  # fmt: skip
        if (number := numbers[_MACHINE]) is not None:
            code += [(equal, 0, len(block), number), *block]
    code.append(allow)
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    _call("prctl", _SET_SECCOMP, 2, struct.pack("HxxxxxxP", len(code), ctypes.addressof(program)), 0, 0)


def _call(name: str, *arguments: Any) -> int:
    """Call a function of the C library; raise OSError if it returns -1."""
    replies = [ctypes.c_ulong(argument) if isinstance(argument, int) else argument for argument in arguments]
    result: int = getattr(_LIBC, name)(*replies)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _syscall(name: str, *arguments: Any) -> int:
    """Make a system call that the C library may have no function for."""
    return _call("syscall", _NUMBERS[name][_MACHINE], *arguments)
