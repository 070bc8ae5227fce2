"""The inside of the sandbox: started by `sandbox.run` as a file, with ``python -I -S``; imports nothing of retune.

Two processes. The supervisor reads the order from stdin, makes namespaces, forks the program's process, and kills it
when its time is up. The program's process builds its file system, gives up its rights, and runs the program.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
import traceback
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
_NO_NEW_PRIVS, _SET_SECCOMP = 38, 22
_READ_SEARCH = 1 << 2  # CAP_DAC_READ_SEARCH
_ROOT = os.getuid() == 0
_MACHINE = ("x86_64", "aarch64").index(
    os.uname().machine
)  # others have no filter here, so nothing is run on them
_AUDIT = (0xC000003E, 0xC00000B7)
_SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/lib32", "/bin")

# Syscall numbers (x86_64, aarch64) of what a program that only computes never needs.
_FORBIDDEN = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "sendto": (44, 206), "sendmsg": (46, 211),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "setsid": (112, 157), "setpgid": (109, 154),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "mount_setattr": (442, 442),
    "move_mount": (429, 429), "fsopen": (430, 430), "open_tree": (428, 428), "unshare": (272, 97), "setns": (308, 268),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "prlimit64": (302, 261),
    "setpriority": (141, 140), "sched_setaffinity": (203, 122), "open_by_handle_at": (304, 265),
    "memfd_create": (319, 279), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190),
    "mq_open": (240, 180), "clone3": (435, 435), "prctl": (157, 167), "quotactl": (179, 60), "acct": (163, 89),
    "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273), "reboot": (169, 142),
    "swapon": (167, 224), "sethostname": (170, 161), "settimeofday": (164, 170), "sched_setscheduler": (144, 119),
}  # fmt: skip
_NO_SUCH_CALL = {"clone3"}  # answered with ENOSYS: the C library then falls back to clone
_NUMBERS = {
    "pivot_root": (155, 41), "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445), "landlock_restrict_self": (446, 446),
}  # fmt: skip


def main() -> None:
    """Carry out the order on stdin."""
    order = json.loads(sys.stdin.buffer.read())
    nothing = os.open("/dev/null", os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    proof, pipe = order["proof"], order["pipe"]
    try:
        if order["isolation"] == "namespaces":
            _leave_namespaces()
        child = os.fork()
    except OSError as error:
        _say(pipe, f"setup:{proof}:{error}")
        return
    if child == 0:
        _program(order)
        os._exit(1)
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([ended], [], [], order["limits"]["seconds"])
    if not ready:
        _say(pipe, f"timeout:{proof}")
    os.kill(child, signal.SIGKILL)  # not yet waited for, so the number is still its own
    os.waitpid(child, 0)


def _program(order: dict[str, Any]) -> None:
    """Shut the door, run the program, say how it ended. Never returns to the supervisor's code."""
    proof, pipe = order["proof"], order["pipe"]
    try:
        _shut(order)
    except BaseException as error:
        _say(pipe, f"setup:{proof}:{error!r}")
        os._exit(1)
    owner = os.getpid()
    text = order.pop("program")
    order.clear()
    os.environ.clear()  # Python itself put LC_CTYPE there
    try:
        exec(compile(text, "<program>", "exec"), {})
        word = f"passed:{proof}"
    except BaseException as error:
        word = f"failed:{proof}:{_last_line(error)}"
    if os.getpid() == owner:  # a copy that the program forked has no say
        _say(pipe, word)
    os._exit(0)


def _last_line(error: BaseException) -> str:
    try:
        return traceback.format_exception_only(error)[-1].strip().replace("\n", " ")[:200]
    except BaseException:
        return "an exception that cannot be printed"


def _say(pipe: int, line: str) -> None:
    os.write(pipe, line.encode(errors="replace") + b"\n")


def _shut(order: dict[str, Any]) -> None:
    """Give up everything the program does not need, in an order in which each step is still allowed."""
    limits = order["limits"]
    filters = order["isolation"] == "filters"
    if filters:
        os.chdir(order["scratch"])
    else:
        _own_file_system(order["scratch"], order["python"], limits["scratch_mib"])
    os.closerange(3, order["pipe"])
    os.closerange(order["pipe"] + 1, 4096)
    if _ROOT:
        _become_nobody(keep_reading=filters)
    _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
    _keep_capabilities(_READ_SEARCH if filters and _ROOT else 0)
    if filters:
        _landlock([*_SYSTEM_FOLDERS, *order["python"], "/dev/null", "/dev/urandom"], order["scratch"])
    _limit(limits)
    _forbid()


def _leave_namespaces() -> None:
    """Leave the network, processes, mounts and IPC of the machine; children are born into the new ones."""
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
    _call("umount2", b".", 2)  # MNT_DETACH: the old root lies over the new one until here
    os.chdir("/scratch")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [text.encode() if text is not None else None for text in (source, target, kind, data)]
    _call("mount", texts[0], texts[1], texts[2], flags, texts[3])


def _read_only(target: str, recursive: bool) -> None:
    attributes = struct.pack("QQQQ", 1 | 2, 0, 0, 0)  # set MOUNT_ATTR_RDONLY and _NOSUID
    _syscall("mount_setattr", -100, target.encode(), 0x8000 if recursive else 0, attributes, len(attributes))


def _become_nobody(keep_reading: bool) -> None:
    """Become a user that owns nothing and that no other program runs as, so that limits count this one alone.

    Without a file system of its own the program must still read a Python that may lie in a private folder: the
    right to read is kept then, and Landlock says where.
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


def _landlock(readable: list[str], writable: str) -> None:
    """Allow reading `readable` and everything below `writable`; all other files are out of reach."""
    version = _LIBC.syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        raise OSError(ctypes.get_errno(), "Landlock is not there")
    known = (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1
    ruleset = _syscall("landlock_create_ruleset", struct.pack("Q", known), 8, 0)
    read_file, read_folder = 1 | 4, 1 | 4 | 8
    rules = [
        (path, read_folder if os.path.isdir(path) else read_file) for path in readable if os.path.exists(path)
    ]
    for path, rights in [*rules, ("/dev/null", 2 | 4), (writable, known & ~1)]:
        place = os.open(path, os.O_PATH)
        _syscall("landlock_add_rule", ruleset, 1, struct.pack("=Qi", rights, place), 0)
        os.close(place)
    _syscall("landlock_restrict_self", ruleset, 0)
    os.close(ruleset)


def _limit(limits: dict[str, Any]) -> None:
    cpu = int(limits["seconds"]) + 1
    for kind, value in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, limits["memory_mib"] << 20),
        (resource.RLIMIT_FSIZE, limits["file_mib"] << 20),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _forbid() -> None:
    """Install the seccomp filter: the system calls in `_FORBIDDEN` fail with EPERM."""
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000
    code = [(load, 0, 0, 4), (equal, 1, 0, _AUDIT[_MACHINE]), (answer, 0, 0, kill), (load, 0, 0, 0)]
    code += [(at_least, 0, 1, 0x40000000), (answer, 0, 0, refuse | 1)]  # x86's second table of calls (x32)
    for name, numbers in _FORBIDDEN.items():
        code += [
            (equal, 0, 1, numbers[_MACHINE]),
            (answer, 0, 0, refuse | (38 if name in _NO_SUCH_CALL else 1)),
        ]
    code.append((answer, 0, 0, allow))
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    _call("prctl", _SET_SECCOMP, 2, struct.pack("HxxxxxxP", len(code), ctypes.addressof(program)), 0, 0)


def _call(name: str, *arguments: Any) -> int:
    """Call a function of the C library; raise OSError if it returns -1."""
    given = [ctypes.c_ulong(argument) if isinstance(argument, int) else argument for argument in arguments]
    result: int = getattr(_LIBC, name)(*given)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _syscall(name: str, *arguments: Any) -> int:
    """Make a system call that the C library may have no function for."""
    return _call("syscall", _NUMBERS[name][_MACHINE], *arguments)


if __name__ == "__main__":
    main()
