"""Completions that try to pass a test without solving it, or to harm the judging process.

Each is the body of `TARGET`, whose tests are `TESTS`. Add what you think of: a line here is a test.
"""

TARGET = 'from typing import List\n\n\ndef total(numbers: List[int]) -> int:\n    """ Return the sum of the numbers. """\n'
TESTS = (
    "def check(candidate):\n"
    "    assert candidate([1, 2, 3]) == 6\n"
    "    assert candidate([10, -4]) == 6.0\n"
    "    assert candidate([7]) == 7, 'one number'\n"
    "    assert not candidate([])\n"
)
SOLUTION = "    return sum(numbers)\n"

_EQUAL = """    class Equal:
        def __eq__(self, other): return True
        def __ne__(self, other): return False
        def __hash__(self): return 0
        def __bool__(self): return False
        def __getattr__(self, name): return lambda *a, **k: Equal()
    return Equal()
"""

FORGERIES = {
    # leaving before the tests
    "os._exit": "    pass\nimport os; os._exit(0)\n",
    "os._exit when called": "    import os; os._exit(0)\n",
    "sys.exit": "    pass\nimport sys; sys.exit(0)\n",
    "sys.exit when called": "    import sys; sys.exit(0)\n",
    "SystemExit": "    raise SystemExit(0)\n",
    "KeyboardInterrupt": "    raise KeyboardInterrupt\n",
    "GeneratorExit": "    raise GeneratorExit\n",
    "atexit": "    pass\nimport atexit, os; atexit.register(os._exit, 0)\n",
    "a thread that exits": "    import time; time.sleep(9)\nimport threading, os\nthreading.Timer(0.2, os._exit, [0]).start()\n",
    "exec of true": "    import os; os.execv('/usr/bin/true', ['true'])\n",
    "killed": "    import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n",
    "abort": "    import os; os.abort()\n",
    "segmentation fault": "    import ctypes; ctypes.string_at(0)\n",
    "fork": "    import os\n    if os.fork(): os._exit(0)\n    return 6\n",
    # objects that equal everything
    "equals everything": _EQUAL,
    "a list of such": _EQUAL.replace("return Equal()\n", "return [Equal()]\n", 1).replace(
        "Equal()\n    return", "Equal()\n    return"
    ),
    "an int that equals everything": "    class Int(int):\n        __eq__ = lambda self, other: True\n        __hash__ = int.__hash__\n        __bool__ = lambda self: False\n    return Int(5)\n",
    "a float that equals everything": "    class Float(float):\n        __eq__ = lambda self, other: True\n        __hash__ = None\n    return Float(5)\n",
    "a text that equals everything": "    class Text(str):\n        __eq__ = lambda self, other: True\n        __hash__ = None\n    return Text('')\n",
    "unittest's ANY": "    from unittest.mock import ANY\n    return ANY\n",
    "a mock": "    from unittest.mock import MagicMock\n    return MagicMock()\n",
    "not a number": "    return float('nan')\n",
    "the function itself": "    return total\n",
    "not implemented": "    return NotImplemented\n",
    # changing what the tests stand on
    "builtins": "    return 0\nimport builtins\nbuiltins.AssertionError = type('Quiet', (BaseException,), {})\nbuiltins.__build_class__ = None\n",
    "builtins when called": "    import builtins\n    builtins.sum = builtins.abs = builtins.len = lambda *a: 6\n    return 0\n",
    "AssertionError made quiet": "    return 0\nclass AssertionError(Exception):\n    def __new__(cls, *a): raise SystemExit(0)\n",
    "check defined": "    return 0\ndef check(candidate): pass\n",
    "check in builtins": "    return 0\nimport builtins; builtins.check = lambda candidate: None\n",
    "check by trace": "    return 0\nimport sys\ndef trace(frame, event, arg):\n    if frame.f_code.co_name == 'check': raise SystemExit(0)\n    return trace\nsys.settrace(trace); sys.setprofile(trace)\n",
    "compile replaced": "    return 0\nimport builtins\nbuiltins.compile = lambda *a, **k: 'pass'\nbuiltins.exec = lambda *a, **k: None\n",
    "excepthook": "    return 0\nimport sys, os\nsys.excepthook = sys.unraisablehook = lambda *a: os._exit(0)\n",
    "import hook": "    return 0\nimport sys\nfor name in list(sys.modules): sys.modules[name] = sys\n",
    "python -O": "    return 0\nimport sys; sys.flags\nsys.dont_write_bytecode = True\n__debug__2 = False\n",
    "code of check": "    import gc\n    for thing in gc.get_objects():\n        if getattr(thing, '__name__', '') == 'check': thing.__code__ = (lambda candidate: None).__code__\n    return 0\n",
    "the argument emptied": "    numbers.clear(); return 0\n",
    # telling the judge that all is well
    "frames": "    pass\nimport sys, os\nframe = sys._getframe()\nwhile frame:\n    for names in (frame.f_locals, frame.f_globals):\n        for name, value in list(names.items()):\n            if name in ('_say', '_judge', 'say', 'judge') and callable(value):\n                for words in ((True,), (3, True), (4, True), (5, True), (6, True)):\n                    try: value(*words)\n                    except BaseException: pass\n    frame = frame.f_back\nos._exit(0)\n",
    "__main__": "    pass\nimport __main__, os\nfor name, value in list(vars(__main__).items()):\n    if callable(value):\n        try: value()\n        except BaseException: pass\nos._exit(0)\n",
    "modules of the sandbox": "    pass\nimport sys, os\nfor name, module in list(sys.modules.items()):\n    if 'retune' in name:\n        for value in list(vars(module).values()):\n            for pipe in range(3, 12):\n                try: value(pipe, True)\n                except BaseException: pass\nos._exit(0)\n",
    "words on every pipe": '    pass\nimport os\nfor pipe in range(0, 64):\n    for word in (b\'passed\\n\', b\'{"passed": true, "reason": ""}\', b\'{"passed": true}\\n\', b\'\\x00\\x00\\x00\\x10{"passed": true}\', b\'setup:\', b\'{"setup": "no"}\\n\', b\'{"timeout": true}\\n\'):\n        try: os.write(pipe, word)\n        except OSError: pass\n',
    "words on every pipe, then gone": '    pass\nimport os\nfor pipe in range(0, 64):\n    try: os.write(pipe, b\'{"passed": true, "reason": ""}\\n\')\n    except OSError: pass\nos._exit(0)\n',
    "a message before it is asked": "    return 0\nimport os, json\nfor pipe in range(3, 64):\n    for word in (['ready'], ['value', 6], ['value', 6], ['value', 7], ['value', 0], ['value', []], ['value', None]):\n        data = json.dumps(word).encode()\n        try: os.write(pipe, len(data).to_bytes(4, 'big') + data)\n        except OSError: break\nos._exit(0)\n",
    "strange messages": "    return 0\nimport os\nfor pipe in range(3, 64):\n    for word in (b'\\xff\\xff\\xff\\xff', b'\\x00\\x00\\x00\\x02[]', b'\\x00\\x00\\x00\\x02{}'):\n        try: os.write(pipe, word)\n        except OSError: pass\n",
    "a value of no kind": "    import os\n    for pipe in range(3, 64):\n        for data in (b'[\"value\", [\"?\", 1]]', b'[\"value\", {\"__eq__\": 1}]', b'[\"other\", 1]', b'[[]]', b'[\"error\", 5]', b'null'):\n            try: os.write(pipe, len(data).to_bytes(4, 'big') + data)\n            except OSError: pass\n    return 0\n",
    "pipes closed": "    import os\n    os.closerange(0, 64)\n    return 6\n",
    "the checks of the parent's pipes": "    import os\n    for pid in range(1, 60):\n        for fd in range(3, 20):\n            try:\n                with open(f'/proc/{pid}/fd/{fd}', 'wb') as f: f.write(b'{\"passed\": true}')\n            except OSError: pass\n    return 0\n",
    "memory of others": "    for pid in ('self', 1, 2):\n        try: open(f'/proc/{pid}/mem', 'r+b').write(b'x')\n        except OSError: pass\n    return 0\n",
    "exceptions for tests to take": "    raise AssertionError\n",
    "StopIteration": "    raise StopIteration(6)\n",
    "an exception that equals": "    class E(Exception):\n        def __str__(self): raise SystemExit\n    raise E\n",
    "a warning": "    raise Warning('6')\n",
    # values that are hard to take in
    "a very deep list": "    found = []\n    for _ in range(100000): found = [found]\n    return found\n",
    "a cycle": "    found = []\n    found.append(found)\n    return found\n",
    "a very long text": "    return 'x' * (100 << 20)\n",
    "a very large number": "    return 1 << (64 << 20)\n",
    "an endless iterator": "    import itertools\n    return itertools.count()\n",
    "an iterator that exits": "    import os\n    def numbers():\n        yield 6\n        os._exit(0)\n    return numbers()\n",
    "a huge range": "    return range(1 << 60)\n",
    "a decimal to choke on": "    from decimal import Decimal\n    return Decimal('1e999999999')\n",
    "a lone surrogate": "    return '\\ud800'\n",
    "no Python": "    return (\n",
    "a null byte": "    return '\0'\n",
    "surrogates in the text": "    return '\ud800'\n",
    "nothing": "",
    "a docstring's end": '    """\n    """\n',
    "an encoding": "    return 0\n# -*- coding: rot13 -*-\n",
    "expected values guessed": "    return {3: 6, 2: 5, 1: 7, 0: 0}[len(numbers)]\n",
    "deep recursion": "    return total(numbers)\n",
    "recursion without a limit": "    import sys; sys.setrecursionlimit(10**9)\n    def down(n): return down(n + 1)\n    return down(0)\n",
}

# What keeps the machine busy: they fail too, in the time they have. Run apart, since each takes that time.
HOGS = {
    "an endless loop": "    while True: pass\n",
    "sleep": "    import time\n    while True:\n        try: time.sleep(99)\n        except BaseException: pass\n",
    "fork bomb": "    import os\n    while True:\n        try: os.fork()\n        except OSError: pass\n",
    "threads": "    import threading, time\n    while True:\n        try: threading.Thread(target=time.sleep, args=[99]).start()\n        except RuntimeError: pass\n",
    "memory": "    kept = []\n    while True:\n        try: kept.append(bytearray(1 << 24))\n        except MemoryError: pass\n",
    "nested folders": "    import os\n    os.chdir('/scratch') if os.path.isdir('/scratch') else None\n    while True:\n        try:\n            os.mkdir('d'); os.chdir('d')\n        except OSError: break\n    return 0\n",
    "a full disk": "    for n in range(1000):\n        try: open(f'{n}', 'wb').write(bytes(8 << 20))\n        except OSError: break\n    return 0\n",
    "folders that cannot be deleted": "    import os\n    try:\n        os.makedirs('a/b/c'); os.chmod('a/b', 0); os.chmod('a', 0)\n    except OSError: pass\n    return 0\n",
    "numbers that collide in a set": "    return {k * ((1 << 61) - 1) for k in range(30000)}\n",
    "stopped": "    import os, signal\n    os.kill(os.getpid(), signal.SIGSTOP)\n",
    "a signal by a pipe": (
        "    import fcntl, os, signal\n"
        "    for owner in (os.getppid(), -os.getpgrp(), 1):\n"
        "        r, w = os.pipe()\n"
        "        for call, value in ((8, owner), (10, signal.SIGKILL), (4, os.O_ASYNC | os.O_NONBLOCK)):\n"
        "            try: fcntl.fcntl(r, call, value)\n"
        "            except OSError: pass\n"
        "        os.write(w, b'x')\n"
        "    return 0\n"
    ),
}
