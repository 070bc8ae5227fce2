"""More forged completions of `attacks.TARGET`: they exit, get killed, write to other pipes, or leave files and processes behind."""

CLAIM = '(b\'{"passed": true, "reason": ""}\\n\', b\'{"killed": true}\\n\', b\'{"ready": true}\\n\', b\'\\n{"passed": true}\')'

ESCAPES = {
    # killed by its own doing: a wrong answer, not a machine out of memory
    "a timer that kills": "    import ctypes, time\n    libc = ctypes.CDLL(None)\n    event = (ctypes.c_int * 16)(0, 0, 9, 0)\n    timer = ctypes.c_void_p()\n    libc.timer_create(1, event, ctypes.byref(timer)); libc.timer_settime(timer, 0, (ctypes.c_long * 4)(0, 0, 0, 1), None)\n    time.sleep(0.2)\n    return 0\n",
    "a timer by number": "    import ctypes, os, time\n    libc = ctypes.CDLL(None)\n    create, start = (222, 223) if os.uname().machine == 'x86_64' else (107, 110)\n    event = (ctypes.c_int * 16)(0, 0, 9, 0)\n    timer = ctypes.c_int()\n    libc.syscall(create, 1, event, ctypes.byref(timer)); libc.syscall(start, timer, 0, (ctypes.c_long * 4)(0, 0, 0, 1), None)\n    time.sleep(0.2)\n    return 0\n",
    "its own limit of CPU time lowered": "    import ctypes, os, time\n    ctypes.CDLL(None).syscall(160 if os.uname().machine == 'x86_64' else 164, 0, (ctypes.c_ulong * 2)(0, 0))\n    end = time.process_time() + 0.3\n    while time.process_time() < end: pass\n    return 0\n",
    "raise_signal": "    import signal\n    for number in (9, 15, 6, 19): signal.raise_signal(number)\n    return 0\n",
    "an alarm nobody handles": "    import signal, time\n    signal.signal(signal.SIGALRM, signal.SIG_DFL); signal.setitimer(signal.ITIMER_REAL, 0.05)\n    time.sleep(2)\n",
    "a forbidden table of calls": "    import ctypes\n    ctypes.CDLL(None).syscall(0x40000000 + 39)\n    return 0\n",
    "an illegal instruction": "    import ctypes, mmap\n    page = mmap.mmap(-1, 4096, prot=7); page.write(b'\\x0f\\x0b' * 99)\n    ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()\n",
    "the stack of a thread": "    import sys, threading\n    sys.setrecursionlimit(10 ** 8); threading.stack_size(1 << 20)\n    def down(n): return [down(n + 1)]\n    t = threading.Thread(target=down, args=[0]); t.start(); t.join()\n    return 0\n",
    "recursion in C": "    import ast\n    return ast.literal_eval('-' * 10 ** 6 + '1')\n",
    # leaving in the middle
    "right once, then gone": "    import os\n    if len(numbers) != 3: os._exit(0)\n    return 6\n",
    "right once, then silent": "    import time\n    if len(numbers) != 3: time.sleep(9)\n    return 6\n",
    "gone as the garbage collector runs": "    import gc, os\n    gc.callbacks.append(lambda *a: os._exit(0)); gc.collect()\n    return 0\n",
    "an audit hook that exits": "    return 0\nimport os, sys\nsys.addaudithook(lambda event, words: os._exit(0) if event in ('exec', 'compile', 'object.__getattr__', 'sys._getframe') else None)\n",
    "a trace of all threads": "    return 0\nimport sys, threading\ndef trace(frame, event, arg):\n    frame.f_trace_opcodes = True\n    if frame.f_code.co_name in ('encode', 'send'): frame.f_locals['value'] = frame.f_locals['message'] = 6\n    return trace\nsys.settrace(trace); threading.settrace(trace); sys._getframe(1).f_trace = trace\n",
    "an interpreter within": "    try: import _xxsubinterpreters as inner\n    except ImportError: return 0\n    inner.run_string(inner.create(), 'import os; os._exit(0)')\n    return 0\n",
    "a thread that outlives": "    import os, threading, time\n    def later():\n        while True:\n            for pipe in range(3, 20):\n                for claim in " + CLAIM + ":\n                    try: os.write(pipe, claim)\n                    except OSError: pass\n            time.sleep(0.01)\n    threading.Thread(target=later, daemon=False).start()\n    return 0\n",
    "exit handlers of threads": "    return 0\nimport threading, os\nthreading._register_atexit(os._exit, 0) if hasattr(threading, '_register_atexit') else None\n",
    # over other ways
    "its own memory": "    import os\n    for place in ('/proc/self/mem', '/proc/thread-self/mem', f'/proc/{os.getpid()}/mem'):\n        try:\n            with open(place, 'r+b', 0) as memory: memory.seek(id(total)); memory.write(b'\\0' * 64)\n        except OSError: pass\n    return 0\n",
    "pipes opened again": "    import os\n    for number in range(0, 40):\n        for folder in ('/proc/self/fd', '/dev/fd', '/proc/1/fd', f'/proc/{os.getppid()}/fd'):\n            try: pipe = os.open(f'{folder}/{number}', os.O_WRONLY)\n            except OSError: continue\n            for claim in " + CLAIM + ": os.write(pipe, claim)\n    return 0\n",
    "pipes exchanged": "    import os\n    for a in range(3, 12):\n        for b in range(3, 12):\n            try: os.dup2(a, b)\n            except OSError: pass\n    return 6\n",
    "descriptors kept from its parent": "    import os, stat\n    for number in range(0, 1024):\n        try: kind = os.fstat(number)\n        except OSError: continue\n        for claim in " + CLAIM + ":\n            try: os.write(number, claim)\n            except OSError: pass\n    return 0\n",
    "machine code": "    import ctypes, mmap, os\n    if os.uname().machine != 'x86_64': return 0\n    text = ctypes.create_string_buffer(b'{\"passed\": true, \"reason\": \"\"}\\n')\n    for pipe in range(3, 12):\n        code = b'\\xb8\\x01\\0\\0\\0\\xbf' + pipe.to_bytes(4, 'little') + b'\\x48\\xbe' + ctypes.addressof(text).to_bytes(8, 'little') + b'\\xba\\x1f\\0\\0\\0\\x0f\\x05\\xc3'\n        page = mmap.mmap(-1, 4096, prot=7); page.write(code)\n        ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()\n    return 0\n",
    "the group of its parent": "    import os, signal\n    for group in (0, os.getpgrp(), os.getpgid(0), os.getppid(), -1, 1):\n        for send in (os.kill, os.killpg):\n            for number in (9, 19, 15):\n                try: send(group, number)\n                except OSError: pass\n    return 0\n",
    "limits raised": "    import resource\n    for kind in range(16):\n        try: resource.setrlimit(kind, (resource.RLIM_INFINITY,) * 2)\n        except (OSError, ValueError): pass\n    kept = [bytearray(1 << 26) for _ in range(64)]\n    return 6\n",
    "huge outputs": "    import os, sys\n    for _ in range(200):\n        for pipe in (1, 2): os.write(pipe, b'{\"passed\": true}\\n' * 60000)\n    sys.stdout.write('x' * (1 << 26)); sys.stderr.write('y' * (1 << 26))\n    return 0\n",
    # values
    "a truth that counts": "    class Bool(list):\n        def __bool__(self): return False\n        def __len__(self): return 0\n        def __iter__(self): return iter([6])\n        __eq__ = lambda self, other: True\n        __hash__ = None\n    return Bool([0])\n",
    "a dictionary whose items lie": "    class Lies(dict):\n        def items(self): return [(6, 6), ([], {})]\n        def __eq__(self, other): return True\n    return Lies()\n",
    "a class made of its tests": "    class Meta(type):\n        __eq__ = lambda self, other: True\n        __hash__ = type.__hash__\n        __bool__ = lambda self: False\n        __instancecheck__ = __subclasscheck__ = lambda self, other: True\n    class Six(int, metaclass=Meta):\n        __class__ = int\n    return Six\n",
    "a method for all operators": "    import operator\n    class All:\n        def __getattr__(self, name): return self\n        def __call__(self, *a, **k): return self\n        __eq__ = __le__ = __ge__ = __contains__ = __instancecheck__ = lambda *a: True\n        __bool__ = lambda self: False\n        __int__ = __index__ = lambda self: 6\n        __reduce__ = lambda self: (int, (6,))\n    return All()\n",
    "assert written anew": "    return 0\nimport builtins, sys\nclass Quiet(AssertionError):\n    def __new__(cls, *a): return None\n    def __init_subclass__(cls): pass\nbuiltins.AssertionError = Quiet\nsys.modules['unittest'] = sys.modules['pytest'] = type(sys)('x')\n__import__('ctypes').pythonapi.PyErr_Clear()\n",
    # what is left for others
    "links in its folder": "    import os\n    for name, target in (('out', '/'), ('me', 'me'), ('proc', '/proc/1/root'), ('up', '../..')):\n        try: os.symlink(target, name)\n        except OSError: pass\n    for name in ('out/etc/passwd', 'proc/etc/passwd', 'up/etc/passwd', 'me/x'):\n        try: open(name).read(); return 6\n        except OSError: pass\n    return 0\n",
    "modules for the next one": "    import os, sys\n    for folder in ('.', '..', '/tmp', '/scratch', '/dev/shm', '/var/tmp', *sys.path):\n        for name in ('typing', 'secrets', 'traceback', 'sitecustomize'):\n            try: open(f'{folder}/{name}.py', 'w').write('import os; os._exit(0)')\n            except OSError: pass\n    return 0\n",
}  # fmt: skip

ESCAPE_HOGS = {
    "threads that compute": "    import hashlib, threading\n    def work():\n        while True: hashlib.sha256(bytes(1 << 20)).digest()\n    for _ in range(6): threading.Thread(target=work, daemon=True).start()\n    work()\n",
    "files until the memory is full": "    import os, mmap\n    kept = []\n    while True:\n        try:\n            file = os.open(f'{len(kept)}', os.O_RDWR | os.O_CREAT); os.ftruncate(file, 1 << 22)\n            kept.append(mmap.mmap(file, 1 << 22)); kept[-1].write(b'x' * (1 << 22)); os.close(file)\n        except BaseException: break\n    while True: kept.append(bytes(1 << 20)) if len(kept) < 400 else None\n",
    "a thread that never lets go": "    import threading, time\n    def busy():\n        while True: pass\n    for _ in range(6): threading.Thread(target=busy, daemon=True).start()\n    time.sleep(99)\n",
}  # fmt: skip
