"""What runs inside the sandbox. `python -c` gets it as text, so it imports nothing of lmcli.

    lmcli -- program, tests, nonce --> init -+-> tests     knows the nonce, and tells the verdict
                                             |    | ^      calls there, plain values back
                                             |    v |
                                             +-> program   sees neither tests, nonce nor verdict

init makes the root folder that the others get. It ends, and all with it, when lmcli closes its
standard input or is gone. The tests reach the program through two pipes, in JSON of builtin values,
whose types and comparisons are then the tests' own. Any other object stays with the program, and
the tests hold a `Remote`, which can be used but is equal to nothing. A list, dict or set that a
function changed in place is changed for the tests too.
"""

import ast
import builtins
import collections
import contextlib
import ctypes
import json
import operator
import os
import resource
import select
import signal
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

MEMORY = 3  # exit code of init
MESSAGE = 2**26  # bytes
NOSUID, NODEV, BIND, RECURSIVE = 2, 4, 4096, 16384  # flags of mount(2)
CHANGING: tuple[Any, ...] = (dict, set, list, bytearray, collections.deque)
ITERABLE: tuple[Any, ...] = (*CHANGING, tuple, frozenset, bytes)
PLAIN: tuple[Any, ...] = (int, float, str, *ITERABLE)
LIBRARIES, DEVICES = ("lib", "lib64"), ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
BY_TEXT = ("builtins.complex", "decimal.Decimal", "fractions.Fraction")
FORWARDED = "iter next len str repr getitem setitem delitem contains setattr enter exit int float "
FORWARDED += "index abs neg add radd sub rsub mul rmul truediv floordiv mod pow and or xor"
libc = ctypes.CDLL(None, use_errno=True)


class Remote:
    """An object of the other side, by its number there."""

    def __init__(self, peer: "Peer", number: int) -> None:
        self.__dict__.update(_peer_=peer, _number_=number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._peer_.ask(self, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._peer_.ask(getattr, self, name)

    def __instancecheck__(self, value: Any) -> bool:
        return self._peer_.ask(isinstance, value, self) is True

    def __bool__(self) -> bool:
        return bool(_value(self))


def _value(value: Any) -> Any:
    """The builtin value that a Remote extends, if it does; TypeError, so that nothing equals it."""
    return value._peer_.ask(Remote(value._peer_, 1), value) if type(value) is Remote else value


def _forward(self: Remote, name: str, *args: Any) -> Any:
    try:
        return self._peer_.ask(self.__getattr__(name), *args)
    except AttributeError as error:  # list() asks for a length, and takes only TypeError
        raise TypeError(str(error)) from None


for _name in FORWARDED.split():
    setattr(Remote, f"__{_name}__", lambda self, *args, n=f"__{_name}__": _forward(self, n, *args))
for _test in (operator.eq, operator.lt, operator.le, operator.gt, operator.ge):
    method = lambda self, other, test=_test: test(_value(self), _value(other))  # noqa: E731
    setattr(Remote, f"__{_test.__name__}__", method)


class Peer:
    """One end of the pipes; it calls `end` when the other one is gone or talks nonsense.

    A `trusted` side runs nothing for the other one but functions that it handed over itself.
    """

    def __init__(self, read: int, write: int, trusted: bool, end: Callable[[], NoReturn]) -> None:
        self.reader, self.writer = os.fdopen(read, "rb"), os.fdopen(write, "wb")
        self.trusted, self.end = trusted, end
        self.objects: list[Any] = []  # what the other side may have a Remote of

    def ask(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        self.send("ask", self.pack(function), self.pack(list(args)), self.pack(kwargs))
        while (message := self.receive())[0] == "ask":
            self.serve(message)
        try:
            kind, value, more = message
            if kind == "raise":
                error = exception(value, more)
            else:
                value, error = self.unpack(value), None
                for arg, after in zip(args, self.unpack(more), strict=True):
                    if type(arg) is type(after) and type(arg) in CHANGING:
                        arg.clear()
                        arg.update(after) if isinstance(arg, dict | set) else arg.extend(after)
        except Exception:
            self.end()
        if error:
            raise error
        return value

    def serve(self, message: list[Any]) -> None:
        try:
            function, args, kwargs = map(self.unpack, message[1:])
            value = self.pack(function(*args, **kwargs))
            after = [self.pack(arg) if type(arg) in CHANGING else None for arg in args]
            pairs = zip(after, message[2], strict=True)
            reply = ["answer", value, [a if a != before else None for a, before in pairs]]
        except Exception as error:
            known = next(c for c in type(error).__mro__ if c.__module__ == "builtins")
            reply = ["raise", known.__name__, str(error)]
        self.send(*reply)

    def send(self, *message: Any) -> None:
        try:
            self.writer.write(json.dumps(message).encode() + b"\n")
            self.writer.flush()
        except OSError:
            self.end()

    def receive(self) -> list[Any]:
        try:
            message = json.loads(self.reader.readline(MESSAGE))
        except Exception:
            message = None
        return message if isinstance(message, list) and message else self.end()

    def pack(self, value: Any) -> Any:
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if value is None or kind in (bool, float, str):
            return value
        if kind is int:
            return value if -(2**63) <= value < 2**63 else {"int": hex(value)}
        if kind is list:
            return [self.pack(each) for each in value]
        if kind in ITERABLE:
            items = map(list, value.items()) if kind is dict else value
            return {kind.__name__: [self.pack(each) for each in items]}
        if name in BY_TEXT:
            return {name: str(value)}
        if kind is Remote:
            return {"yours": value._number_}
        if kind.__module__ != "program" and isinstance(value, PLAIN):  # Counter, defaultdict, ..
            return self.pack(plain(value))
        title = getattr(value, "__name__", "")
        if self.trusted and title and getattr(builtins, title, None) is value:
            return {"builtin": title}
        if self.trusted and not callable(value):
            raise TypeError(f"tests cannot pass a {name} to the program")
        self.objects.append(value)
        return {"mine": len(self.objects) - 1}

    def unpack(self, packed: Any) -> Any:
        if isinstance(packed, list):
            return [self.unpack(each) for each in packed]
        if not isinstance(packed, dict):
            return packed
        [(tag, content)] = packed.items()
        if tag == "mine":
            return Remote(self, content)
        if tag == "yours":
            return self.objects[content]
        if tag == "builtin" and not self.trusted:
            return getattr(builtins, content)
        if tag == "int":
            return int(content, 16)
        if tag in BY_TEXT:
            module, _, name = tag.partition(".")
            return getattr(__import__(module), name)(content)
        return next(kind for kind in ITERABLE if kind.__name__ == tag)(self.unpack(content))


def exception(name: str, text: str) -> Exception:
    """The builtin one, or what it extends if it takes more than a text, as UnicodeDecodeError."""
    known: Any = getattr(builtins, name, None)  # `exec`, if the program likes
    if isinstance(known, type) and issubclass(known, Exception):
        for kind in known.__mro__:
            with contextlib.suppress(TypeError):
                return kind(text)  # type: ignore[no-any-return]
    return RuntimeError(text)


def plain(value: Any) -> Any:
    """The value of the builtin type that the value's type extends."""
    for kind in PLAIN:
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"a {type(value).__name__} of the program is equal to nothing")


def run_program(text: str, read: int, write: int) -> NoReturn:
    """Executes the program at the first request, and answers requests for ever."""
    module = sys.modules["program"] = types.ModuleType("program")

    def load(names: list[str]) -> dict[str, Any]:
        exec(compile(text, "program", "exec"), vars(module))
        return {name: vars(module)[name] for name in names if name in vars(module)}

    peer = Peer(read, write, trusted=False, end=lambda: os._exit(0))
    peer.objects += [load, plain]
    try:
        while True:
            peer.serve(peer.receive())
    finally:
        os._exit(1)  # SystemExit and the like


def run_tests(text: str, nonce: str, read: int, write: int, verdict: int) -> NoReturn:
    """Executes the tests; names that they do not define themselves are the program's.

    Not so builtin ones, unless the tests use none but those: the function may be called `sum`.
    """

    def end(reason: str = "error", detail: str = "the program ended") -> NoReturn:
        os.write(verdict, f"{nonce} {reason} {detail[:1000]}".encode(errors="replace"))
        os._exit(0)

    peer = Peer(read, write, trusted=True, end=end)
    try:
        tree = ast.parse(text)
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        wanted = sorted(name for name in names if not name.startswith("__"))
        found = peer.ask(Remote(peer, 0), wanted)
        theirs = {name: found[name] for name in wanted if name in found}
        own = {name: theirs[name] for name in theirs if not hasattr(builtins, name)}
        exec(compile(tree, "tests", "exec"), {**(own or theirs), "__name__": "tests"})
    except BaseException as error:
        failed, memory = isinstance(error, AssertionError), isinstance(error, MemoryError)
        end("failed" if failed else "memory" if memory else "error", repr(error))
    end("passed", "")


def call(name: str, *args: Any) -> None:
    """A function of the C library that returns -1 on errors."""
    if getattr(libc, name)(*args) < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, flags: int, kind: str = "", options: str = "") -> None:
    call("mount", *map(os.fsencode, (source, target, kind)), flags, os.fsencode(options))


def build_root(root: str, size: int) -> None:
    """Libraries and the standard library, read-only, and an empty /tmp of `size` bytes; no /proc.

    It is mounted at `root`, in this mount namespace alone.
    """
    mount("tmpfs", root, NOSUID | NODEV, "tmpfs", "size=1m,mode=755")
    folders = [os.path.join(p, lib) for p in (sys.base_prefix, "/usr", "/") for lib in LIBRARIES]
    for path in dict.fromkeys([*folders, "/nix/store"]):
        if os.path.islink(path) and not os.path.lexists(root + path):
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path):
            os.makedirs(root + path, exist_ok=True)
            mount(path, root + path, BIND | RECURSIVE)
    os.mkdir(root + "/tmp")
    os.mkdir(root + "/dev")
    for path in DEVICES:
        os.mknod(root + path)
    attributes = (ctypes.c_uint64 * 4)(1 | NOSUID | NODEV, 0, 0, 0)  # 1: read-only
    number, here, size_of = map(ctypes.c_long, (442, -100, 32))  # mount_setattr, of Linux 5.12
    call("syscall", number, here, os.fsencode(root), 0x8000, attributes, size_of)
    mount("tmpfs", root + "/tmp", NOSUID | NODEV, "tmpfs", f"size={size},nr_inodes=4096")
    for path in DEVICES:
        mount(path, root + path, BIND)


def confine(limits: dict[str, Any], root: str) -> None:
    """Limits for this process; with a `root`, that folder, and none of the powers of its user."""
    if root:
        os.chroot(root)
        os.chdir("/tmp")
        if limits["user"]:
            os.setgroups([])
        os.setresgid(*[limits["user"]] * 3)
        os.setresuid(*[limits["user"]] * 3)
        call("capset", (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
    for option, value in ((38, 1), (4, 0)):  # no new privileges; not dumpable, so not traceable
        call("prctl", option, value, 0, 0, 0)
    processes = limits["processes"] + (0 if root else running())
    wanted = {"AS": limits["memory"], "FSIZE": limits["files"], "NPROC": processes}
    for name, value in {**wanted, "NOFILE": 64, "CORE": 0, "CPU": limits["seconds"] + 2}.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        value = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
        resource.setrlimit(which, (value, value))


def running() -> int:
    """This user's threads, which count with those of a program that has no namespace."""
    found = 0
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{process}").st_uid == os.getuid():
                found += len(os.listdir(f"/proc/{process}/task"))
    return found


def watch(limits: dict[str, Any], root: str) -> NoReturn:
    """Until lmcli closes its end, or the processes together take more memory than one may."""
    code, pages = 0, limits["memory"] // resource.getpagesize()
    while not code and not select.select([0], [], [], 0.05)[0]:
        used = 0
        for process in filter(str.isdigit, os.listdir("/proc") if root else ()):
            try:
                with open(f"/proc/{process}/statm") as file:
                    used += int(file.read().split()[1])
                os.waitpid(-1, os.WNOHANG)
            except OSError:
                pass  # it has ended, or none is left
        code = MEMORY if used > pages else 0
    if not root:
        os.killpg(0, signal.SIGKILL)
    os._exit(code)


def take(size: int) -> bytes:
    """So many bytes of standard input, and not one more."""
    found = b""
    while len(found) < size:
        found += os.read(0, size - len(found)) or os._exit(0)
    return found


def text() -> str:
    return take(int.from_bytes(take(8), "big")).decode(errors="surrogatepass")


def main() -> None:
    limits = json.loads(sys.argv[1])
    root, verdict = "" if limits["weak"] else os.getcwd(), limits["verdict"]
    program = text()  # once it is there, so are the users
    if root:
        build_root(root, limits["files"])
    asked, ask = os.pipe()
    answers, answer = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    if not os.fork():
        if root:
            call("unshare", 0x20000000)  # a pid namespace of its own, where it is process 1
            if os.fork():
                os._exit(0)
            os.setsid()  # kill(0) reaches a group in any namespace
        os.dup2(null, 0)
        for handle in (null, verdict, ask, answers):
            os.close(handle)
        confine(limits, root)
        run_program(program, asked, answer)
    tests, nonce = text(), text()  # not before: the program's process has a copy of all memory
    if not os.fork():
        for handle in (0, 1, 2):
            os.dup2(null, handle)
        for handle in (null, asked, answer):
            os.close(handle)
        confine(limits, root)
        run_tests(tests, nonce, answers, ask, verdict)
    for handle in (asked, ask, answers, answer, verdict):
        os.close(handle)
    watch(limits, root)


if __name__ == "__main__":
    main()
