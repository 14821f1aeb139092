"""Python interpreters as forks of one process that has loaded all slow packages. Started by ``interpreter.py``.

It has loaded packages and composed the defaults, and has run nothing, so each fork is as good as a new interpreter,
without the seconds of its imports, and with a Hydra that reads a preset once (``quick_hydra.py``).
``interpreter_client.py`` asks for a fork: it sends arguments, folder, environment and its own open files, is told the
process id, and at last how the fork ended. A client that dies takes its fork with it.
"""

import atexit
import fcntl
import gc
import importlib
import json
import multiprocessing.spawn
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import sys
import threading
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NoReturn

PACKAGES = (
    "accelerate",
    "datasets",
    "gguf",
    "httpx",
    "hydra._internal.core_plugins.basic_sweeper",
    "hydra.experimental.callback",
    "hydra.main",
    "jaxtyping",
    "joblib",
    "matplotlib.pyplot",
    "peft",
    "rapidfuzz.fuzz",
    "rapidfuzz.process",
    "rich.progress",
    "rich.syntax",
    "rich.table",
    "scipy.optimize",
    "scipy.stats",
    "torch.distributed.run",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.optimization",
    *(f"transformers.models.{family}.modeling_{family}" for family in ("gpt2", "llama", "qwen2", "gemma2", "gemma3")),
    "wandb",
    # Of tests alone: workers are forks, too.
    "hypothesis",
    "selenium.webdriver.chrome.webdriver",
)
ROOT = Path(__file__).resolve().parents[2]
SIZE = 8  # bytes of a message's length, of a process id, of an exit code


class Server:
    """Waits at a Unix socket, and forks."""

    def __init__(self, path: str) -> None:
        self.selector = selectors.DefaultSelector()
        self.forks: dict[int, socket.socket] = {}
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(64)
        self.ended, self.wake = socket.socketpair()  # a signal wakes ``select`` by this alone
        for end in (self.ended, self.wake):
            end.setblocking(False)
        for file in (0, self.listener, self.ended):
            self.selector.register(file, selectors.EVENT_READ)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self.wake.fileno(), warn_on_full_buffer=False)

    def serve(self) -> dict[str, Any] | None:
        """Until standard input ends: None. Comes back in every fork, too, with its request."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj == 0:
                    return None
                if key.fileobj is self.ended:
                    self.ended.recv(4096)
                elif key.fileobj is self.listener:
                    if (request := self.forked()) is not None:
                        return request
                else:  # a client never says a second thing: it has died
                    self.selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)
            self.tell()

    def forked(self) -> dict[str, Any] | None:
        """Fork for the next client; its request in the fork, None in the server."""
        client, _ = self.listener.accept()
        head, files, _, _ = socket.recv_fds(client, SIZE, 250)
        text = b""
        while len(text) < int.from_bytes(head):
            text += client.recv(1 << 20)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.selector.close()
            for end in (self.listener, self.ended, self.wake, client, *self.forks.values()):
                end.close()
            return {**json.loads(text), "received": files}
        for file in files:
            os.close(file)
        client.sendall(pid.to_bytes(SIZE))
        self.forks[pid] = client
        self.selector.register(client, selectors.EVENT_READ, pid)
        return None

    def tell(self) -> None:
        """Tell the clients of forks that have ended how they did."""
        for pid in list(self.forks):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                client = self.forks.pop(pid)
                if client in self.selector.get_map():
                    self.selector.unregister(client)
                    client.sendall(os.waitstatus_to_exitcode(status).to_bytes(SIZE, signed=True))
                client.close()


def read_already(environment: dict[str, str]) -> dict[str, str]:
    """The variables that packages read when they are imported, so that a fork must have the server's."""
    names = ("HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "PYTHONHASHSEED")
    return {name: environment[name] for name in names if name in environment}


def become(request: dict[str, Any]) -> None:
    """Be the interpreter that was asked for, until what it runs has ended."""
    high = 10 + max(request["files"])
    kept = [fcntl.fcntl(file, fcntl.F_DUPFD, high) for file in request["received"]]
    for file in request["received"]:
        os.close(file)
    for number, held in zip(request["files"], kept, strict=True):
        os.dup2(held, number)
    for held in kept:
        os.close(held)
    os.setsid()
    os.chdir(request["folder"])
    if read_already(request["environment"]) != read_already(dict(os.environ)):
        sys.exit(f"needs an interpreter of its own: {read_already(request['environment'])}")
    os.environ.clear()
    os.environ.update(request["environment"])
    if sys.dont_write_bytecode:  # it may be written here, so that forks compile no module that another has compiled
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(Path(request["executable"]).parent / "bytecode")
    wandb_media().__init__("wandb-media")
    unpainted.for_good()
    # What it starts is forked, too.
    sys.executable = request["executable"]
    multiprocessing.spawn.set_executable(sys.executable)
    run(request["arguments"])


def run(words: list[str]) -> None:
    """What ``python WORDS`` runs: ``-c CODE``, ``-m MODULE`` or a file, after ``-I`` or ``-u``."""
    isolated = False
    while words[0] in ("-I", "-u"):
        isolated = isolated or words[0] == "-I"
        if words[0] == "-u":
            sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        words = words[1:]
    kind, what = (words[0], words[1]) if words[0] in ("-c", "-m") else ("file", words[0])
    sys.argv = [kind, *words[2:]] if kind != "file" else list(words)
    first = {"-c": "", "-m": os.getcwd(), "file": os.path.dirname(os.path.realpath(what))}[kind]
    given = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.path[:0] = [] if isolated else [first, *given]
    importlib.invalidate_caches()
    sys.meta_path.insert(0, Own())  # type: ignore[arg-type]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif kind == "file":
        runpy.run_path(what, run_name="__main__")
    else:
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), main.__dict__)


def wandb_media() -> Any:
    """The folder that wandb makes when it is imported, and each process that ends removes."""
    return sys.modules["wandb.sdk.data_types._private"].MEDIA_TMP


def load_own() -> None:
    """What every run of this checkout does first: import all of the package, compose its defaults, ask for versions,
    and write a model, before which transformers makes a thousand regular expressions, and the texts about one.
    """
    sys.path.insert(0, str(ROOT))
    for module in pkgutil.walk_packages(importlib.import_module("kldistill").__path__, "kldistill."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("kldistill.pipeline.compose").defaults()
    # Hydra looks for its plugins once: each fork's path may have others.
    importlib.import_module("hydra.core.singleton").Singleton._instances.pop(
        importlib.import_module("hydra.core.plugins").Plugins
    )
    about = importlib.import_module("kldistill.pipeline.about")
    about.program(), about.packages()
    with TemporaryDirectory() as folder:
        importlib.import_module("kldistill.model.tiny").build(Path(folder))
    importlib.import_module("kldistill.export.card").template()
    del sys.path[0]


class Own:
    """This checkout's package, loaded before the fork: there from its first import on, where the path leads to it."""

    def __init__(self) -> None:
        names = [name for name in sys.modules if name.partition(".")[0] == "kldistill"]
        self.modules = {name: sys.modules.pop(name) for name in names}
        self.spec = self.modules["kldistill"].__spec__

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(name) if name == "kldistill" else None
        if found is None or found.origin is None or Path(found.origin).resolve() != ROOT / "kldistill" / "__init__.py":
            return None
        found.loader = self  # type: ignore[assignment]
        return found

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.modules["kldistill"]

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec
        sys.modules.update(self.modules)


def end(error: BaseException | None) -> NoReturn:
    """An interpreter's end, but for taking apart all modules, which would take longer than most of what is run here."""
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        with suppress(ValueError):  # it has been closed
            file.flush()
    os._exit(code)


if __name__ == "__main__":
    importlib.import_module("unsynced").no_sync()
    # By the name that a worker knows it by, or that one would take what is changed here for what was installed.
    quick_hydra = sys.modules["tests.helpers.quick_hydra"] = importlib.import_module("quick_hydra")
    unpainted = importlib.import_module("unpainted")
    del sys.path[0]  # where this file is
    for package in PACKAGES:
        importlib.import_module(package)
    quick_hydra.quicken()
    load_own()
    wandb_media().cleanup()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)  # as in tests/conftest.py
    server = Server(sys.argv[1])
    print("ready", flush=True)
    error = None
    try:
        if (request := server.serve()) is not None:
            become(request)
    except BaseException as raised:
        error = raised
    end(error)
