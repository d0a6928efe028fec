"""The sandbox of generated programs: no forged verdict, no side effect, nothing left running."""

import gzip
import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from lmcli.errors import RefusedError
from lmcli.evaluation import sandbox
from lmcli.evaluation.sandbox import Limits, run

LIMITS = Limits(seconds=1.5, memory=2**28, files=2**24)
CALM = Limits(seconds=30)  # for programs that are right, on a machine that may be busy


@pytest.fixture
def isolated():
    if why := sandbox.available():
        pytest.skip(f"no namespaces here: {why}")


@pytest.fixture(params=["namespaces", "weak"])
def weak(request):
    """Whether to do without namespaces."""
    if request.param == "namespaces":
        request.getfixturevalue("isolated")
    return request.param == "weak"


def run_all(pairs: dict, limits: Limits, weak: bool = False) -> dict:
    """Verdicts by name, of a few at a time."""
    with ThreadPoolExecutor(4) as pool:
        futures = {name: pool.submit(run, *pair, limits, weak) for name, pair in pairs.items()}
    return {name: future.result() for name, future in futures.items()}


def in_time(verdict, limits: Limits = LIMITS) -> bool:
    """Ended at most a second after its time, on a machine that has a processor for it."""
    return verdict.seconds < limits.seconds + 1 + 5 * run("", "", CALM, weak=True).seconds


# ---- forged verdicts: f is to add one, and none of these does ----

TESTS = "assert f(1) == 2\nassert f(5) == 6\nassert abs(f(0.5) - 1.5) < 1e-9\n"
WRONG = "\ndef f(x): return 0\n"
NEARLY = "\ndef f(x): return int(x) + 1\n"  # the last of the tests finds it out
ALWAYS = """
class Always{base}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __sub__(self, other): return 0
    def __abs__(self): return 0
    def __bool__(self): return True
    __hash__ = object.__hash__
def f(x): return Always()
"""
FRAMES = """
import sys
def f(x):
    frame = sys._getframe()
    while frame:
        for scope in (frame.f_locals, frame.f_globals):
            for name, value in list(scope.items()):
                if isinstance(value, str) and len(value) == 32: print(value, "passed", flush=True)
                if callable(getattr(value, "end", None)): value.end = lambda *_: None
        frame = frame.f_back
    return 0
"""
HEAP = """
import gc, os
for each in gc.get_objects():
    try:
        if isinstance(each, dict):
            for key, value in list(each.items()):
                if key in ("reason", "passed", "verdict", "nonce"): each[key] = "passed"
                if isinstance(value, str) and len(value) == 32: os.write(2, value.encode())
    except Exception: pass
"""
MAIN = """
import __main__, sys
__main__.Peer.pack = lambda self, value: True
__main__.Peer.unpack = lambda self, packed: [1]
__main__.run_tests = __main__.watch = lambda *_: None
__main__.plain = lambda value: True
"""
EVERY_HANDLE = """
import os
for fd in range(64):
    for line in (b"passed\\n", b"0" * 32 + b" passed\\n", b'["answer", true, []]\\n' * 9):
        try: os.write(fd, line)
        except OSError: pass
"""
EARLY_ANSWERS = """
import __main__, os
for each in __import__("gc").get_objects():
    if type(each) is __main__.Peer:
        for value in ('{"mine": 7}', "true", '{"yours": 0}', '{"dict": [["f", 3]]}'):
            each.writer.write(b'["answer", %s, []]\\n' % value.encode())
        each.writer.write(b'["raise", "KeyboardInterrupt", ""]\\n["ask", {"yours": 0}, [], {}]\\n')
        each.writer.flush()
"""
CODE = """
import __main__, sys
frame = sys._getframe()
while frame:
    if type(frame.f_locals.get("peer")) is __main__.Peer: peer = frame.f_locals["peer"]
    frame = frame.f_back
theirs = (
    "import os, sys\\nframe = sys._getframe()\\n"
    "while 'nonce' not in frame.f_locals: frame = frame.f_back\\n"
    "os.write(frame.f_locals['verdict'], (frame.f_locals['nonce'] + ' passed').encode())\\n"
    "os._exit(0)"
)
peer.send("raise", "exec", theirs)
peer.send("ask", {"builtin": "exec"}, [theirs], {"dict": []})
peer.send("ask", {"yours": 0}, [theirs], {"dict": []})
peer.send("answer", {"__main__.exec": theirs}, [])
peer.send("answer", {"builtins.exec": theirs}, [])
"""
NESTED = """
import __main__
for each in __import__("gc").get_objects():
    if type(each) is __main__.Peer:
        each.writer.write(b"[" * 100000 + b"]" * 100000 + b"\\n")
        each.writer.flush()
"""
FORGED = {
    "exit": "import os\nos._exit(0)",
    "exit when called": "import os\ndef f(x): os._exit(0)",
    "SystemExit": "raise SystemExit(0)",
    "SystemExit when called": "import sys\ndef f(x): sys.exit(0)",
    "KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "equal to everything": ALWAYS.format(base=""),
    "an int equal to everything": ALWAYS.format(base="(int)"),
    "a float equal to everything": ALWAYS.format(base="(float)"),
    "a type equal to everything": ALWAYS.format(base="(type)").replace("Always()", "Always"),
    "claims to be an int": ALWAYS.format(base="") + "Always.__class__ = property(lambda s: int)",
    "no answer of ==": "class A:\n  def __eq__(s, o): return NotImplemented\ndef f(x): return A()",
    "patched abs": "import builtins\nabs = builtins.abs = lambda x: 0" + NEARLY,
    "patched builtins": "import builtins\nbuiltins.AssertionError = builtins.type = int" + NEARLY,
    "own builtins": "__builtins__ = {'abs': lambda x: 0}\ncheck = print" + NEARLY,
    "patched json": "import json\njson.dumps = lambda *a, **k: '[\"answer\", true, []]'" + WRONG,
    "patched modules": "import sys\nfor m in list(sys.modules): sys.modules[m] = None" + WRONG,
    "frames": FRAMES,
    "heap": HEAP + WRONG,
    "harness": MAIN + WRONG,
    "verdict line": "print('0' * 32, 'passed', flush=True)\nprint('passed', flush=True)" + WRONG,
    "every handle": EVERY_HANDLE + WRONG,
    "answers before questions": EARLY_ANSWERS + WRONG,
    "nested too deep": NESTED + WRONG,
    **{f"code {i}": CODE.replace("\npeer.send", "\n0 and peer.send", i) + WRONG for i in range(5)},
    "closed handles": "import os\nos.closerange(0, 64)" + WRONG,
    "moved handles": "import os\nfor i in range(3, 9):\n  os.dup2(1, i)" + WRONG,
    "trace": "import sys\nsys.settrace(lambda *a: sys.exit(0))\nsys.setprofile(print)" + WRONG,
    "at exit": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit" + WRONG,
    "thread": "import threading, os\nthreading.Timer(.1, os._exit, [0]).start()" + WRONG,
    "standard input": "import sys\nprint(sys.stdin.read() + ' passed', flush=True)" + WRONG,
    "signal": "import os, signal\nsignal.signal(15, lambda *a: os._exit(0))\nos.kill(0, 15)"
    + WRONG,
    "recursion": "def f(x): return f(x)",
    "cyclic": "def f(x):\n  l = []\n  l.append(l)\n  return l",
    "syntax error": "def f(x: return x + 1",
    "nothing": "",
    "lone surrogate": "def f(x): return '\udcff'",
    "changed argument": "def f(x):\n  x += 1\n  return x - 1",
}


def test_no_wrong_program_passes(weak):
    verdicts = run_all({name: (program, TESTS) for name, program in FORGED.items()}, LIMITS, weak)
    assert [name for name, v in verdicts.items() if v.passed or v.reason == "passed"] == []
    assert in_time(max(verdicts.values(), key=lambda v: v.seconds))


def test_those_tests_pass_what_is_right():
    assert run("def f(x): return x + 1", TESTS, CALM, weak=True).passed
    swallowed = "try:\n  f(1)\nexcept Exception:\n  pass"
    assert run("def f(x): raise ValueError", swallowed, CALM, weak=True).passed
    assert run("import os\ndef f(x): os._exit(0)", swallowed, CALM, weak=True).reason == "error"


# ---- side effects ----


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Things of the user, and what a program may try to do to them: {name: (program, happened)}."""
    home = tmp_path / "home"
    (home / "canary").mkdir(parents=True)
    (home / "canary" / "file").write_text("secret")
    monkeypatch.setenv("HOME", str(home))
    server = socket.create_server(("127.0.0.1", 0))
    local = socket.socket(socket.AF_UNIX)
    local.bind(str(tmp_path / "socket"))
    hidden = socket.socket(socket.AF_UNIX)
    hidden.bind(f"\0lmcli-{os.getpid()}")
    for each in (server, local, hidden):
        each.listen()
        each.setblocking(False)

    def reached(listener):
        try:
            listener.accept()[0].close()
            return True
        except BlockingIOError:
            return False

    connect = "import socket\nsocket.socket(socket.{}).connect({!r})"
    yield {
        "remove": (
            f"import shutil\nshutil.rmtree({str(home / 'canary')!r})",
            lambda: not (home / "canary" / "file").exists(),
        ),
        "write": (
            f"open({str(home / 'new')!r}, 'w').write('x')",
            lambda: (home / "new").exists(),
        ),
        "temporary file": (
            f"open({str(tmp_path / 'new')!r}, 'w').write('x')",
            lambda: (tmp_path / "new").exists(),
        ),
        "connect": (
            connect.format("AF_INET", server.getsockname()),
            lambda: reached(server),
        ),
        "connect to a path": (
            connect.format("AF_UNIX", str(tmp_path / "socket")),
            lambda: reached(local),
        ),
        "connect to a name": (
            connect.format("AF_UNIX", f"\0lmcli-{os.getpid()}"),
            lambda: reached(hidden),
        ),
        "read": (
            f"print(open({str(home / 'canary' / 'file')!r}).read())\n"
            f"open({str(tmp_path / 'read')!r}, 'w')",
            lambda: (tmp_path / "read").exists(),
        ),
    }
    for each in (server, local, hidden):
        each.close()


EFFECTS = ["remove", "write", "temporary file", "connect", "connect to a path"]
EFFECTS += ["connect to a name", "read"]


@pytest.mark.parametrize("name", EFFECTS)
def test_nothing_outside_is_reached(outside, name, weak):
    """Without namespaces it is, which shows that these programs do what they say."""
    program, happened = outside[name]
    verdict = run(program + "\ndone = 1", "assert done", CALM, weak)
    assert happened() == verdict.passed == weak


DENIED = {
    "write /etc/passwd": "open('/etc/passwd', 'a')",
    "read /etc/passwd": "open('/etc/passwd').read()",
    "write a library": "open(os.__file__, 'a')",
    "write the root": "open('/x', 'w')",
    "kill the parent": "os.kill({parent}, 9)",
    "process 2": "os.kill(2, 9)",
    "signal all": "assert os.getpid() == 1\nos.kill(-1, 9)",
    "parent's memory": "open('/proc/{parent}/mem', 'rb')",
    "any /proc": "os.listdir('/proc')",
    "trace the parent": "assert libc.ptrace(16, {parent}, 0, 0) == 0",
    "read the parent's memory": "data = (ctypes.c_char * 8)()\n"
    "part = (ctypes.c_void_p * 2)(ctypes.addressof(data), 8)\n"
    "assert libc.process_vm_readv({parent}, part, 1, part, 1, 0) == 8",
    "handle of the parent": "os.pidfd_open({parent})",
    "mount": "assert libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "unmount": "assert libc.umount2(b'/tmp', 2) == 0",
    "new user namespace": "assert libc.unshare(0x10000000) == 0",
    "leave the root": "os.chroot('/tmp')",
    "host name": "import socket\nsocket.sethostname('x')",
    "a shell": "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'true'], check=True)",
    "device": "os.mknod('/tmp/x', 0o60600, os.makedev(8, 0))",
    "another user": "os.setuid(0)",
    "clock": "import time\ntime.clock_settime(0, 1)",
    "raise limits": "import resource\nresource.setrlimit(7, (9999, 9999))",
    "interfaces": "import socket\nsocket.create_connection(('1.1.1.1', 53), 1)",
    "ping": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
}


@pytest.mark.usefixtures("isolated")
def test_all_of_it_is_denied():
    start = "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
    programs = {name: start + text.format(parent=os.getpid()) for name, text in DENIED.items()}
    verdicts = run_all({name: (text, "pass") for name, text in programs.items()}, CALM)
    assert {name: v for name, v in verdicts.items() if v.reason not in ("error", "failed")} == {}


@pytest.mark.usefixtures("isolated")
def test_what_a_program_sees():
    program = "import os\ndef f(): return {d: sorted(os.listdir(d)) for d in ('/', '/tmp', '/dev')}"
    home = Path.home().relative_to("/").parts[0]
    tests = """
seen = f()
assert seen['/tmp'] == [] and seen['/dev'] == ['null', 'random', 'urandom', 'zero']
assert not set(seen['/']) & {'etc', 'proc', 'sys', 'var', 'run', 'mnt', 'work'}
"""
    tests += f"assert {home!r} not in seen['/'] or {home!r} in {sandbox.sys.base_prefix!r}"
    assert run(program, tests, CALM).passed
    names = "import socket\ndef f(): return [i[1] for i in socket.if_nameindex()]"
    assert run(names, "assert set(f()) <= {'lo', 'tunl0', 'sit0', 'ip6tnl0'}", CALM).passed
    other = "import os\nopen('/tmp/x', 'w').write('x')\ndef f(): return os.listdir('/tmp')"
    assert run(other, "assert f() == ['x']", CALM).passed
    assert run("import os\ndef f(): return os.listdir('/tmp')", "assert f() == []", CALM).passed


# ---- resources ----

ENDLESS = {
    "loop": "while True: pass",
    "call": "def f(x):\n  while True: pass",
    "sleep": "import time\ntime.sleep(60)",
    "ignores signals": (
        "import signal, time\nfor s in set(range(1, 32)) - {9, 19}: signal.signal(s, 1)\n"
        "while True: time.sleep(1)"
    ),
    "catches all": "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
    "in C": "sum(range(10**12))",
}
BOMBS = {
    "memory": ("x = 'x' * 2**34", {"memory"}),
    "memory in small pieces": (
        "x = []\nwhile True: x.append('x' * 10**6 + str(len(x)))",
        {"memory"},
    ),
    "output": ("import sys\nfor _ in range(1024): sys.stdout.write('x' * 2**20)", {"output"}),
    "raw output": ("import os\nwhile True: os.write(2, b'x' * 2**16)", {"output"}),
    "threads": (
        "import threading, time\n"
        "while True: threading.Thread(target=time.sleep, args=[60]).start()",
        {"error"},
    ),
    "answer": ("def f(x): return 'x' * 2**27", {"error", "memory"}),
    "many objects": ("def f(x): return [[]] * 10**8", {"error", "memory"}),
}
FORKS = {
    "fork bomb": (
        "while True:\n  try: os.fork()\n  except OSError: pass",
        {"timeout"},
    ),
    "memory of many": (
        "for _ in range(20):\n  if not os.fork():\n    x = bytearray(2**25)\n    time.sleep(60)\n"
        "time.sleep(60)",
        {"memory"},
    ),
    "large file": (
        "signal.signal(signal.SIGXFSZ, 1)\n"
        "with open('/tmp/x', 'wb') as file:\n  while True: file.write(b'x' * 2**20)",
        {"error"},
    ),
    "many files": (
        "for i in range(10**6):\n  with open(f'/tmp/{i}', 'w') as file: file.write('x' * 10**5)",
        {"error"},
    ),
    "detached": (
        "if not os.fork():\n  os.setsid()\n  os.closerange(0, 64)\n  if not os.fork():\n"
        "    while True: time.sleep(1)\n  os._exit(0)\nos.wait()\nos._exit(0)",
        {"error"},
    ),
}


def test_limits_hold(weak):
    endless = {name: (text, TESTS) for name, text in ENDLESS.items()}
    for name, verdict in run_all(endless, LIMITS, weak).items():
        assert verdict.reason == "timeout" and in_time(verdict), (name, verdict)
    bombs = {name: (text, TESTS) for name, (text, _) in BOMBS.items()}
    verdicts = run_all(bombs, replace(LIMITS, seconds=30), weak)
    assert {name: v for name, v in verdicts.items() if v.reason not in BOMBS[name][1]} == {}


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("name", FORKS)
def test_limits_hold_for_all_processes_together_and_none_is_left(name):
    program, reasons = FORKS[name]
    seconds = (1.5 if reasons == {"timeout"} else 30) + os.getpid() / 1e8 + len(name) / 1e3
    limits = Limits(seconds, memory=2**29, files=2**24)  # so many seconds, to be known by them
    guard = "import os, signal, time\nassert os.getpid() == 1\n"
    verdict = run(guard + program, TESTS, limits)
    assert verdict.reason in reasons and in_time(verdict, limits)
    assert not processes(limits)


def processes(limits: Limits) -> list[str]:
    """Those that were started with these limits."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path("/proc", process, "cmdline").read_bytes()
        except OSError:
            continue
        if f'"seconds": {limits.seconds}'.encode() in command:
            found.append(process)
    return found


def test_all_ends_with_the_process_that_started_it(weak, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # which keeps a folder
    limits = Limits(60 + os.getpid() / 1e8)
    if not (starter := os.fork()):
        run("while True: pass", "", limits, weak)
        os._exit(0)
    deadline = time.monotonic() + 20
    while len(processes(limits)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(processes(limits)) >= 3
    os.kill(starter, 9)
    os.waitpid(starter, 0)
    while processes(limits) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not processes(limits)


def test_a_program_without_a_namespace_may_start_processes_beside_those_of_its_user():
    program = "import resource\ndef f(): return resource.getrlimit(resource.RLIMIT_NPROC)[0]"
    limits = replace(CALM, processes=2)
    assert run(program, "assert f() > 2", limits, weak=True).passed


@pytest.mark.usefixtures("isolated")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can leave its groups")
def test_a_program_is_in_no_group_of_root():
    before = os.getgroups()
    os.setgroups([1234])
    try:
        verdict = run("import os\ndef f(): return os.getgroups()", "assert f() == []", CALM)
    finally:
        os.setgroups(before)
    assert verdict.passed


# ---- what is right passes ----

STACK = """
class Stack(list):
    def push(self, x): self.append(x)
    def top(self): return self[-1]
class Node:
    def __init__(self, value, left=None):
        self.value, self.left = value, left
    def __str__(self): return f"<{self.value}>"
    def __len__(self): return 1 + (len(self.left) if self.left else 0)
    def __add__(self, other): return Node(self.value + other.value)
    def __enter__(self): return self
    def __exit__(self, *error): self.value = 0
class Missing(KeyError): pass
def fail(): raise Missing("x")
def depth(node): return 1 + depth(node.left) if node.left else 1
"""
RIGHT = [
    ("def f(x): return x", "for x in (None, True, 1, -2**70, 10**5000, 1.5, 'é\\0\\udcff', [1],"
     " b'\\xff', (1, (2,)), {1, 2}, frozenset({3}), {(1, 2): [3]}, bytearray(b'x'), 1 + 2j, {}):\n"
     "  assert f(x) == x and type(f(x)) is type(x)"),
    ("def f(): return float('nan'), float('inf'), -0.0",
     "a, b, c = f()\nassert a != a and b > 1e308 and str(c) == '-0.0'"),
    ("def f(x): return x", "assert f(1) is not True and not f(0.0) and repr(f(1.0)) == '1.0'"),
    ("import fractions, decimal\ndef f(): return fractions.Fraction(1, 3), decimal.Decimal('0.10')",
     "from decimal import Decimal\nfrom fractions import Fraction\n"
     "assert f() == (Fraction(1, 3), Decimal('.1'))"),
    ("from collections import *\ndef f(x): return Counter(x), OrderedDict(a=1), deque(x)",
     "from collections import deque\na, b, c = f('aab')\nassert a == {'a': 2, 'b': 1}\n"
     "assert b == {'a': 1} and c == deque('aab')"),
    ("from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
     "assert f() == (1, 2) and f().y == 2"),
    ("def f(x, *more, key=None, **others): return [x, more, key, others]",
     "assert f(1, 2, 3, key=4, z=5) == [1, (2, 3), 4, {'z': 5}]"),
    ("def f(x): x.sort()", "x = [3, 1, 2]\nf(x)\nassert x == [1, 2, 3]"),
    ("def f(x, y): x.update(y)", "x = {1: 2}\nf(x, {3: 4})\nassert x == {1: 2, 3: 4}"),
    ("def f(g, x): return [g(i) for i in x]", "assert f(lambda i: i + 1, [1]) == [2]\n"
     "assert f(len, ['ab']) == [2] and f(str.upper, 'a') == ['A'] and f(int, '12') == [1, 2]"),
    ("def f(x): return lambda y: x + y", "assert f(1)(2) == 3"),
    ("def f(n):\n  for i in range(n): yield i", "assert list(f(2)) == [0, 1] and sum(f(4)) == 6"),
    ("def f(x): return map(str, x)", "assert ''.join(f([1, 2])) == '12'"),
    (STACK, "s = Stack()\ns.push(1)\ns.push(2)\nassert s.top() == 2 and len(s) == 2\n"
     "assert s == [1, 2] and s[0] == 1 and 2 in s and list(s) == s and s and isinstance(s, Stack)"),
    (STACK, "n = Node(1, Node(2))\nassert n.value == 1 and str(n) == '<1>' and depth(n) == 2\n"
     "assert len(n) == 2 and n.left.left is None and (n + n.left).value == 3\nn.value = 7\n"
     "assert n.value == 7\nwith n as m: assert m.value == 7\nassert n.value == 0"),
    (STACK, "try:\n  fail()\n  assert False\nexcept KeyError as e: assert 'x' in str(e)"),
    ("def f(x):\n  if x < 0: raise ValueError('negative')\n  return x",
     "try: f(-1)\nexcept ValueError as e: assert str(e) == 'negative'\nelse: assert False"),
    ("def f(): print('x' * 1000)\nf()", "assert f() is None"),
    ("def f(): return input()", "try: f()\nexcept EOFError: pass\nelse: assert False"),
    ("if __name__ == '__main__': raise SystemExit\ndef f(): return 1", "assert f() == 1"),
    ("from dataclasses import dataclass\n@dataclass\nclass P:\n  x: int\ndef f(p): return p.x",
     "assert f(P(3)) == 3"),
    ("def sum(a, b): return a - b", "assert sum(5, 2) == 3"),
    ("TABLE = [1, 2]\ndef f(): return TABLE[0]", "assert TABLE[1] == 2 and f() == 1"),
    ("def f(x): return x + 1", "import math\ndef check(candidate):\n"
     "  assert math.isclose(candidate(1), 2)\ncheck(f)"),
    ("def f(b): return b.decode()", "try: f(b'\\xff')\n"
     "except ValueError as e: assert 'invalid start byte' in str(e)\nelse: assert False"),
    ("import threading\ndef f():\n  out = []\n  t = threading.Thread(target=out.append, args=[1])\n"
     "  t.start()\n  t.join()\n  return out", "assert f() == [1]"),
    ("import os\ndef f():\n  if not os.fork(): os._exit(3)\n  return os.waitstatus_to_exitcode("
     "os.wait()[1])", "assert f() == 3"),
    ("import tempfile\ndef f():\n  with tempfile.TemporaryFile() as t: return t.write(b'abc')",
     "assert f() == 3"),
    ("import random, hashlib, re, itertools, heapq, sqlite3, zoneinfo, decimal, ctypes\n"
     "def f(x): return hashlib.md5(x.encode()).hexdigest()[:4]", "assert f('a') == '0cc1'"),
    ("X = '" + "x" * 10**6 + "'\ndef f(): return X", "assert f() == '" + "x" * 10**6 + "'"),
    ("def f(n): return [list(range(n))] * 10", "assert len(f(10000)) == 10"),
    ("def f(s): return {c for c in s}", "assert f('hello') == set('hello')"),
]  # fmt: skip


def test_right_programs_pass(weak):
    verdicts = run_all(dict(enumerate(RIGHT)), CALM, weak)
    assert {RIGHT[i]: v for i, v in verdicts.items() if not v.passed} == {}


@pytest.mark.parametrize(
    ("program", "tests", "reason"),
    [
        ("def f(): return 1", "assert f() == 2", "failed"),
        ("def f(): return 1", "assert f(2) == 1", "error"),
        ("def f(): return 1", "assert g() == 1", "error"),
        ("def f(): return 1", "assert f( == 1", "error"),
        ("def f(): return 1", "raise SystemExit(0)", "error"),
        ("class P: pass\ndef f(): return P()", "assert f() == f()", "error"),
        ("def f(x): return 1", "class T: pass\nassert f(T()) == 1", "error"),
        ("def f(): return 'x' * 10**12", "f()", "memory"),
    ],
)
def test_reasons(program, tests, reason):
    assert run(program, tests, CALM, weak=True).reason == reason


def known_good(test_data, last):
    with gzip.open(test_data / "humaneval" / "HumanEval.jsonl.gz", "rt") as file:
        problems = [json.loads(line) for line in file][:last]
    return [
        (p["prompt"] + p["canonical_solution"], f"{p['test']}\ncheck({p['entry_point']})")
        for p in problems
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("isolated")
def test_the_solutions_of_humaneval_pass(test_data):
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = list(pool.map(lambda pair: run(*pair, CALM), known_good(test_data, None)))
    assert [i for i, verdict in enumerate(verdicts) if not verdict.passed] == []


@pytest.mark.soak
@pytest.mark.usefixtures("isolated")
def test_solutions_pass_20_times_of_20_under_load(test_data):
    pairs = known_good(test_data, 100) * 20
    with ThreadPoolExecutor(4 * os.cpu_count()) as pool:
        verdicts = list(pool.map(lambda pair: run(*pair, CALM), pairs))
    assert [(i % 100, verdict) for i, verdict in enumerate(verdicts) if not verdict.passed] == []


# ---- where there are no namespaces ----


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox.available.cache_clear()
    yield tmp_path
    sandbox.available.cache_clear()


def test_without_unshare_it_refuses(path):
    with pytest.raises(RefusedError, match="`unshare` of util-linux is not installed"):
        run("f = 1", "assert f")
    assert run("f = 1", "assert f", CALM, weak=True).passed


def test_where_namespaces_are_forbidden_it_says_so(path):
    (path / "unshare").write_text("#!/bin/sh\necho unshare failed: Operation not permitted\nexit 1")
    (path / "unshare").chmod(0o755)
    assert sandbox.available() == "unshare failed: Operation not permitted"
    with pytest.raises(RefusedError, match="Operation not permitted; --weak-sandbox does without"):
        run("f = 1", "assert f")
