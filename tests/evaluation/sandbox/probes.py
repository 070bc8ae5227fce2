"""Programs that try to reach something outside the sandbox. Each must end in an exception; one that completes has escaped.

All run in one sandbox, one after the other. `libc(name, ...)` calls a function of the C library and `call(number, ...)` the
kernel; both raise OSError where the kernel refuses. `VICTIM` is a folder with files of the user that runs retune (`mine`,
`link`), `PARENT` is retune's process, `SHARED`, `QUEUE` and `SEMAPHORE` are System V objects of that user.
"""

PRELUDE = """
import ctypes, os, signal, sys
_libc = ctypes.CDLL(None, use_errno=True)
def libc(name, *words):
    _libc[name].restype = ctypes.c_long
    found = _libc[name](*[ctypes.c_long(w) if isinstance(w, int) else w for w in words])
    if found == -1:
        raise OSError(ctypes.get_errno(), name)
    return found
def call(x86, arm, *words):
    number = x86 if os.uname().machine == "x86_64" else arm
    if number is None:
        raise OSError("no such call on this machine")
    return libc("syscall", number, *words)
"""

PROBES = {
    # other processes
    "ptrace attach": "libc('ptrace', 16, PARENT, 0, 0)",
    "ptrace by its parent": "libc('ptrace', 0, 0, 0, 0)",
    "memory of another process": "open(f'/proc/{PARENT}/mem', 'r+b')",
    "memory of itself": "open('/proc/self/mem', 'r+b')",
    "process_vm_writev": "call(311, 271, PARENT, 0, 0, 0, 0, 0)",
    "process_vm_readv": "call(310, 270, PARENT, 0, 0, 0, 0, 0)",
    "pidfd_open": "os.pidfd_open(PARENT)",
    "pidfd_open of itself": "os.pidfd_open(os.getpid())",
    "pidfd_getfd": "call(438, 438, 0, 0, 0)",
    "pidfd_send_signal": "call(424, 424, 0, 9, 0, 0)",
    "process_madvise": "call(440, 440, 0, 0, 0, 0, 0)",
    "process_mrelease": "call(448, 448, 0, 0)",
    "kcmp": "call(312, 272, os.getpid(), PARENT, 0, 0, 1)",
    "kill": "os.kill(PARENT, 0)",
    "killpg": "os.killpg(os.getpgrp(), signal.SIGKILL)",
    "everybody": "os.kill(-1, signal.SIGKILL)",
    "stop the parent": "os.kill(os.getppid() or 1, signal.SIGSTOP)",
    "tgkill": "call(234, 131, PARENT, PARENT, 9)",
    "a queued signal": "call(129, 138, PARENT, 9, b'\\0' * 128)",
    "a pipe that signals": "import fcntl; fcntl.fcntl(0, 8, PARENT)",
    "a pipe that signals a group": "import fcntl, struct; fcntl.fcntl(0, 15, struct.pack('ii', 2, os.getpgrp()))",
    "a pipe that signals by ioctl": "import fcntl, struct; fcntl.ioctl(0, 0x8901, struct.pack('i', PARENT))",
    "SIGIO for others": "import fcntl; fcntl.fcntl(0, 10, signal.SIGKILL)",
    "a lease": "import fcntl; fcntl.fcntl(os.open('/dev/null', os.O_RDONLY), 1024, 0)",
    "priority of others": "os.setpriority(os.PRIO_PROCESS, PARENT, 19)",
    "priority of a user": "os.setpriority(os.PRIO_USER, os.getuid(), 19)",
    "processors of others": "os.sched_setaffinity(PARENT, {0})",
    "limits of others": "call(302, 261, PARENT, 7, b'\\0' * 16, 0)",
    "limits raised": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "limits lowered": "call(160, 164, 0, b'\\0' * 16)",
    "a timer that sends any signal": "call(222, 107, 1, 0, b'\\0' * 8)",
    "core dumps": "import resource; resource.setrlimit(resource.RLIMIT_CORE, (1 << 30, 1 << 30))",
    "locked memory": "libc('mlockall', 3)",
    # new processes
    "fork": "os.fork()",
    "vfork": "call(58, None)",
    "clone without threads": "call(56, 220, 17, 0, 0, 0, 0)",
    "clone3": "call(435, 435, b'\\0' * 88, 88)",
    "exec": "os.execv('/usr/bin/true', ['true'])",
    "execveat": "call(322, 281, -100, b'/usr/bin/true', 0, 0, 0)",
    "spawn": "os.posix_spawn('/usr/bin/true', ['true'], {})",
    "subprocess": "import subprocess; subprocess.run(['/usr/bin/true'], check=True)",
    "system": "if os.system('true') != 0: raise OSError('no shell')",
    "multiprocessing": "import multiprocessing; p = multiprocessing.get_context('spawn').Process(target=print); p.start()",
    "a new session": "os.setsid()",
    "a new group": "os.setpgid(0, 0)",
    "a file of memory to run": "os.memfd_create('x')",
    "secret memory": "call(447, 447, 0)",
    # the kernel
    "io_uring": "call(425, 425, 8, b'\\0' * 120)",
    "asynchronous requests": "call(206, 0, 1024, b'\\0' * 8)",
    "userfaultfd": "call(323, 282, 0)",
    "bpf": "call(321, 280, 0, b'\\0' * 64, 64)",
    "perf": "call(298, 241, b'\\0' * 64, 0, -1, -1, 0)",
    "keys": "call(248, 217, b'user', b'x', b'y', 1, -3)",
    "a key of the session": "call(250, 219, 0, -3, 1)",
    "fanotify": "call(300, 262, 0, 0)",
    "inotify": "libc('inotify_init1', 0)",
    "another filter": "call(317, 277, 1, 0, 0)",
    "dumpable": "libc('prctl', 4, 1, 0, 0, 0)",
    "personality": "libc('personality', 0x0040000)",
    "splice": "call(275, 76, 0, 0, 1, 0, 1, 0)",
    "vmsplice": "call(278, 75, 1, 0, 0, 0)",
    "all disks flushed": "call(162, 81) ; raise SystemExit('sync ran')",
    "the clock": "libc('settimeofday', b'\\0' * 16, 0)",
    "the machine's name": "import socket; socket.sethostname('x')",
    "x32": "call(0x40000000 + 57, None)",
    "openat2": "call(437, 437, -100, b'/', b'\\0' * 24, 24)",
    # rights
    "namespaces": "libc('unshare', 0x10000000)",
    "setns": "libc('setns', 0, 0)",
    "mount": "libc('mount', b'tmpfs', b'/', b'tmpfs', 0, 0)",
    "chroot": "os.chroot('/usr')",
    "root": "os.setuid(0) if os.getuid() else os.setuid(1)",
    "groups": "os.setgroups([0])",
    "capabilities": "import struct; libc('capset', struct.pack('Ii', 0x20080522, 0), struct.pack('6I', *[0xffffffff] * 6))",
    # networks and what processes share
    "TCP": "import socket; socket.socket()",
    "UDP": "import socket; socket.socket(type=socket.SOCK_DGRAM)",
    "an abstract socket": "import socket; socket.socket(socket.AF_UNIX).bind('\\0retune')",
    "vsock": "import socket; socket.socket(40, socket.SOCK_STREAM)",
    "netlink": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "kernel's ciphers": "import socket; socket.socket(38, socket.SOCK_SEQPACKET)",
    "a descriptor sent": "import socket; socket.send_fds(socket.socketpair()[0], [b'x'], [0])",
    "a name resolved": "import socket; socket.getaddrinfo('localhost', 80)[0] and socket.create_connection(('localhost', 80), 1)",
    "shared memory made": "libc('shmget', 0, 4096, 0o1600)",
    "shared memory attached": "call(30, 196, SHARED, 0, 0)",
    "shared memory deleted": "call(31, 195, SHARED, 0, 0)",
    "a queue deleted": "call(71, 187, QUEUE, 0, 0)",
    "a queue written": "call(69, 189, QUEUE, b'\\1' + b'\\0' * 15, 8, 0o4000)",
    "a semaphore deleted": "call(66, 191, SEMAPHORE, 0, 0, 0)",
    "a POSIX queue": "call(240, 180, b'retune', 0o102, 0o600, 0)",
    "a POSIX queue deleted": "call(241, 181, b'retune-victim')",
    "POSIX shared memory": "from multiprocessing import shared_memory; shared_memory.SharedMemory(create=True, size=4096)",
    "a semaphore of POSIX": "import multiprocessing; multiprocessing.get_context('fork').Lock()",
    # files outside
    "a file read": "open(VICTIM + '/mine')",
    "a file written": "open(VICTIM + '/mine', 'r+')",
    "a file made": "open(VICTIM + '/new', 'x')",
    "a file emptied": "os.truncate(VICTIM + '/mine', 0)",
    "a file emptied by opening": "os.open(VICTIM + '/mine', os.O_RDONLY | os.O_TRUNC)",
    "rights of a file": "os.chmod(VICTIM + '/mine', 0o777)",
    "rights of a folder": "os.chmod(VICTIM, 0)",
    "rights by a descriptor": "os.fchmod(os.open('/usr', os.O_RDONLY), 0)",
    "owner of a file": "os.chown(VICTIM + '/mine', -1, os.getgid())",
    "times of a file": "os.utime(VICTIM + '/mine', (0, 0))",
    "attributes of a file": "os.setxattr(VICTIM + '/mine', 'user.x', b'y')",
    "attributes removed": "os.removexattr(VICTIM + '/mine', 'user.kept')",
    "a file renamed": "os.rename(VICTIM + '/mine', VICTIM + '/other')",
    "a file deleted": "os.unlink(VICTIM + '/mine')",
    "a hard link": "os.link(VICTIM + '/mine', VICTIM + '/hard')",
    "a symbolic link": "os.symlink('/etc/passwd', VICTIM + '/soft')",
    "a link followed": "open(VICTIM + '/link')",
    "a FIFO": "os.mkfifo(VICTIM + '/fifo')",
    "a device": "os.mknod('null', 0o20666, os.makedev(1, 3))",
    "a folder": "os.mkdir(VICTIM + '/folder')",
    "a folder listed": "os.listdir(VICTIM)",
    "dots": "open('/usr/../etc/passwd')",
    "a name with a newline": "open(VICTIM + '/a\\nb', 'x')",
    "the disk itself": "os.open('/dev/sda', os.O_RDONLY)",
    "the terminal": "os.open('/dev/tty', os.O_RDWR)",
    "shared memory's folder": "open('/dev/shm/retune', 'x')",
    "the temporary folder": "open('/tmp/retune-was-here', 'x')",
    "a handle of a file": "call(303, 264, -100, b'/usr', b'\\x80' + b'\\0' * 200, b'\\0' * 4, 0)",
    "Python's own files": "open(os.__file__, 'r+')",
    "Python's own files emptied": "open(os.__file__, 'w')",
    "the home folder": "os.listdir(os.path.expanduser('~root'))",
    "descriptors of others": "[os.fstat(n) for n in range(3, 64)][0]; os.listdir('/proc/self/fd')",
}  # fmt: skip


def program(victim: str, parent: int, shared: int, queue: int, semaphore: int) -> str:
    """Return one program of all probes; it ends in an AssertionError that names those that ran through."""
    names = (
        f"VICTIM, PARENT, SHARED, QUEUE, SEMAPHORE = {victim!r}, {parent}, {shared}, {queue}, {semaphore}\n"
    )
    return (
        f"{PRELUDE}{names}breached = []\n"
        f"for name, text in {list(PROBES.items())!r}:\n"
        "    try: exec(text, dict(globals()))\n"
        "    except Exception: continue\n"
        "    except BaseException: pass\n"
        "    breached.append(name)\n"
        "assert not breached, breached\n"
    )
