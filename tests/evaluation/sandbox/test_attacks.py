"""Hostile programs: each gets its verdict, in bounded time, and the next program is judged as if nothing had been."""

import json
import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kldistill.evaluation.sandbox import Outcome, Sandbox, Verdict
from tests.helpers.patience import PATIENCE
from tests.helpers.sandboxes import needs_bubblewrap, processes_with, small, wait_until

pytestmark = needs_bubblewrap
Attack = Callable[[str], Outcome]
MARK = 100_000 + os.getpid()  # a limit by which these sandboxes, and no other suite's, are found


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(small(output_bytes=MARK), workers=2) as made:
        yield made


@pytest.fixture
def judge(sandbox: Sandbox) -> Attack:
    return lambda program: sandbox.submit(textwrap.dedent(program)).result(timeout=PATIENCE)


@pytest.fixture
def attack(sandbox: Sandbox, judge: Attack) -> Iterator[Attack]:
    """Runs a program; afterwards the sandbox still works, and nothing is left."""
    yield judge
    assert [outcome.verdict for outcome in sandbox.run(["assert True", "assert False"])] == ["passed", "failed"]
    assert wait_until(lambda: not processes_with(str(MARK)))


# ---- using things up


def test_infinite_loop(attack: Attack) -> None:
    outcome = attack("try:\n    while True: pass\nexcept BaseException:\n    pass")
    assert (outcome.verdict, outcome.detail) == (Verdict.TIMED_OUT, "more than 0.25 CPU seconds")
    assert 0.25 < outcome.cpu_seconds < 2


def test_infinite_loop_in_c(attack: Attack) -> None:
    assert attack("sum(iter(int, 1))").verdict is Verdict.TIMED_OUT


def test_infinite_loop_in_a_thread(attack: Attack) -> None:
    outcome = attack("def f():\n    while True: pass\nimport threading\nthreading.Thread(target=f).start()")
    assert outcome.verdict is Verdict.PASSED  # the program has ended, and its threads end with it


def test_loop_that_ignores_signals(attack: Attack) -> None:
    program = """
        import signal
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        while True: pass
        """
    assert attack(program).verdict is Verdict.TIMED_OUT


def test_fork_bomb(attack: Attack) -> None:
    outcome = attack("import os\nwhile True:\n    os.fork()")
    assert (outcome.verdict, outcome.detail) == (Verdict.BLOCKED, "PermissionError: [Errno 1] Operation not permitted")
    determined = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    assert attack(determined).verdict is Verdict.TIMED_OUT


@pytest.mark.parametrize(
    "start",
    ["os.posix_spawn('/bin/true', ['true'], {})", "subprocess.run(['true'])", "multiprocessing.Process().start()"],
)
def test_no_other_programs(attack: Attack, start: str) -> None:
    assert attack(f"import multiprocessing, os, subprocess\n{start}").verdict is Verdict.BLOCKED


def test_thread_bomb(attack: Attack) -> None:
    program = """
        import threading
        threading.stack_size(1 << 16)
        stay = threading.Event()
        while True:
            threading.Thread(target=stay.wait).start()
        """
    outcome = attack(program)
    assert outcome.verdict is Verdict.BLOCKED
    assert outcome.detail in ("more than 8 threads", "RuntimeError: can't start new thread")


@pytest.mark.parametrize(
    "program",
    [
        "x = bytearray(1 << 40)",
        "x = []\nwhile True:\n    x.append(bytearray(1 << 20))",
        "x = 'x'\nwhile True:\n    x += x",
        "import mmap\nx = [mmap.mmap(-1, 1 << 26) for _ in range(100)]",
    ],
)
def test_memory_bomb(attack: Attack, program: str) -> None:
    outcome = attack(program)
    assert outcome.verdict is Verdict.CRASHED
    assert "emory" in outcome.detail


def test_filling_the_disk(attack: Attack) -> None:
    outcome = attack("with open('big', 'wb') as f:\n    while True:\n        f.write(bytes(1 << 16))")
    assert outcome.verdict is Verdict.BLOCKED
    many = "import itertools\nfor n in itertools.count():\n    open(f'{FOLDER}/{n}', 'wb').write(bytes(1 << 18))"
    for folder in ("/tmp", "/dev/shm"):
        outcome = attack(many.replace("{FOLDER}", folder))
        assert (outcome.verdict, outcome.detail) == (Verdict.BLOCKED, "OSError: [Errno 28] No space left on device")
    for folder in ("/", "/dev", "/usr", "/proc"):
        assert attack(f"open('{folder}/new', 'w')").verdict is Verdict.BLOCKED


@pytest.mark.parametrize(
    "program",
    [
        "while True:\n    print('x' * 1000)",
        "import os\nwhile True:\n    os.write(2, b'x' * 100_000)",
        "import sys\nprint('x' * 10_000_000)\nassert False",
    ],
)
def test_endless_output(attack: Attack, program: str) -> None:
    outcome = attack(program)
    assert (outcome.verdict, outcome.detail) == (Verdict.CRASHED, f"more than {MARK} bytes of output")
    assert outcome.cpu_seconds < 0.25


def test_deep_recursion(attack: Attack) -> None:
    outcome = attack("def f():\n    f()\nf()")
    assert (outcome.verdict, outcome.detail.split(":")[0]) == (Verdict.FAILED, "RecursionError")
    endless = "import sys\nsys.setrecursionlimit(2**31 - 1)\ndef f(n):\n    f((n, n))\nf(())"
    with Sandbox(small(cpu_seconds=10, output_bytes=MARK), workers=1) as patient:
        assert (
            patient.submit(endless).result(timeout=PATIENCE).verdict is Verdict.CRASHED
        )  # no memory is left for frames


def test_segmentation_fault_and_abort(attack: Attack) -> None:
    assert attack("import ctypes\nctypes.string_at(0)").detail == "killed by signal 11"
    assert attack("import os\nos.abort()").verdict is Verdict.CRASHED
    assert attack("import os\nos.kill(os.getpid(), 9)").verdict is Verdict.CRASHED


# ---- reaching out


def test_deleting_the_home_folder(attack: Attack, tmp_path: Path) -> None:
    kept = tmp_path / "thesis.tex"
    kept.write_text("years of work")
    assert attack(f"import shutil\nshutil.rmtree({str(tmp_path)!r})").verdict is missing(tmp_path)
    assert attack("import os, shutil\nshutil.rmtree(os.path.expanduser('~/'))").verdict is not Verdict.PASSED
    assert attack("import shutil\nshutil.rmtree('/usr')").verdict is Verdict.BLOCKED
    assert attack("import os, json\nos.remove(json.__file__)").verdict is Verdict.BLOCKED
    assert kept.read_text() == "years of work"
    assert Path(json.__file__).exists()


def test_reading_the_home_folder(attack: Attack, tmp_path: Path) -> None:
    (tmp_path / "id_ed25519").write_text("secret")
    for path in (tmp_path / "id_ed25519", Path(__file__), Path("/etc/passwd"), Path("/proc/1/root/etc/passwd")):
        assert attack(f"open({str(path)!r}).read()").verdict is missing(path)
    listed = attack("import os\nraise ValueError(os.listdir('/'), os.listdir('/tmp'), os.listdir('/dev/shm'))").detail
    assert "'usr'" in listed and "'home'" not in listed and "'mnt'" not in listed
    assert listed.endswith("[], [])")


def missing(path: Path) -> Verdict:
    """Verdict of a program that wants a file of the machine; ``/tmp`` is its own, and may well lack the file."""
    return Verdict.FAILED if path.is_relative_to("/tmp") else Verdict.BLOCKED


def test_secrets_of_the_environment(attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "opensesame")
    monkeypatch.setenv("HF_TOKEN", "opensesame")
    program = """
        import glob, os
        found, names = dict(os.environb), glob.glob("/proc/*/environ") + glob.glob("/proc/*/cmdline")
        assert len(names) >= 4
        for name in names:
            try:
                with open(name, "rb") as file:
                    found[name] = file.read()
            except PermissionError:
                pass
        text = repr(found)
        assert "open" + "sesame" not in text and "API_KEY" not in text, text
        raise ValueError(sorted(os.environ))
        """
    outcome = attack(program)
    assert outcome.verdict is Verdict.FAILED
    assert outcome.detail.startswith("ValueError: ['LANG', 'MALLOC_ARENA_MAX', 'PATH', 'PWD', 'PYTHON")


@pytest.mark.parametrize(
    "program",
    [
        "import socket\nsocket.create_connection(('1.1.1.1', 53), timeout=5)",
        "import socket\nsocket.create_server(('127.0.0.1', 8000))",
        "import socket\nsocket.socket(socket.AF_UNIX).connect('/run/docker.sock')",
        "import socket\nsocket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)",
        "import urllib.request\nurllib.request.urlopen('http://example.org', timeout=5)",
    ],
)
def test_opening_a_socket(attack: Attack, program: str) -> None:
    assert attack(program).verdict is Verdict.BLOCKED


def test_killing_the_parent(attack: Attack) -> None:
    kill = """
        import os, signal
        for pid in (os.getppid(), 1):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL):
                os.kill(pid, number)
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:  # there is nobody else
            pass
        """
    assert attack(kill + "assert False").verdict is Verdict.FAILED
    assert attack(kill).verdict is Verdict.PASSED  # in vain, and nothing was skipped


# A program that changes what its supervisor may do. Whether it is refused does not matter to it: it goes on.
CRIPPLE = """
import os, resource, threading, time
def dare(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        refused.append(error.errno)
refused = []
for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE):
    dare(resource.prlimit, 1, kind, (4, 4))
dare(os.setpriority, os.PRIO_PROCESS, 1, 19)
dare(os.setpriority, os.PRIO_PGRP, 0, 19)
dare(os.sched_setscheduler, 1, os.SCHED_IDLE, os.sched_param(0))
dare(os.sched_setaffinity, 1, {0})
"""


def test_the_parent_cannot_be_crippled(attack: Attack) -> None:
    outcome = attack(CRIPPLE + "assert refused == [1] * 8, refused")  # EPERM, every time
    assert (outcome.verdict, outcome.detail) == (Verdict.PASSED, "")


def test_a_crippled_parent_would_still_count(attack: Attack) -> None:
    slow = "end = time.process_time() + 0.6\nwhile time.process_time() < end: pass"
    assert attack(CRIPPLE + slow).verdict is Verdict.TIMED_OUT
    many = """
stay = threading.Event()
threads = [threading.Thread(target=stay.wait) for _ in range(40)]
threading.stack_size(1 << 16)
for thread in threads: thread.start()
time.sleep(0.5)
stay.set()
"""
    assert attack(CRIPPLE + many).verdict is Verdict.BLOCKED


def test_a_program_may_change_its_own_limits(attack: Attack) -> None:
    program = """
        import os, resource
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
        assert resource.prlimit(0, resource.RLIMIT_NOFILE) == (soft - 1, hard)
        os.sched_setaffinity(0, os.sched_getaffinity(0))
        """
    outcome = attack(program)
    assert (outcome.verdict, outcome.detail) == (Verdict.PASSED, "")


def test_leaving_a_daemon_behind(attack: Attack) -> None:
    program = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(1000)
        """
    assert attack(program).verdict is Verdict.BLOCKED  # that nothing is left, the fixture looks after
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()"
    assert attack(thread).verdict is Verdict.PASSED


def test_settings_of_the_kernel(attack: Attack) -> None:
    # Open to every process whose user outside is root; a program may be named there that the kernel runs as root.
    assert attack("open('/proc/sys/kernel/core_pattern', 'r+')").verdict is Verdict.BLOCKED
    assert attack("import os\nos.open('/proc/self/uid_map', os.O_WRONLY)").verdict is Verdict.BLOCKED


def test_system_calls_that_lead_out(attack: Attack) -> None:
    program = """
        import ctypes, errno
        libc = ctypes.CDLL(None, use_errno=True)
        calls = {
            "unshare": (0x10000000,), "ptrace": (16, 1, 0, 0), "memfd_create": (b"x", 0), "shmget": (0, 4096, 0o1600),
            "mount": (b"none", b"/tmp", b"tmpfs", 0, 0), "setns": (0, 0), "chroot": (b"/tmp",),
            "execv": (b"/bin/true", 0),
        }
        for name, arguments in calls.items():
            ctypes.set_errno(0)
            got = getattr(libc, name)(*arguments), ctypes.get_errno()
            assert got == (-1, errno.EPERM), (name, got)
        """
    outcome = attack(program)
    assert (outcome.verdict, outcome.detail) == (Verdict.PASSED, "")


# ---- passing without having passed


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nsys.exit(0)\nassert False",
        "import os\nos._exit(0)\nassert False",
        "raise SystemExit\nassert False",
        "exit()\nassert False",
        "import atexit, os\natexit.register(os._exit, 0)\nassert False",
        "import os, threading\nthreading.Thread(target=os._exit, args=(0,)).start()\nwhile True: pass",
        "import signal, os\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\nsignal.alarm(1)\nsignal.pause()",
    ],
)
def test_early_exit_is_no_pass(judge: Attack, program: str) -> None:
    outcome = judge(program)
    assert outcome.verdict is Verdict.FAILED


@pytest.mark.parametrize(
    "error",
    [
        "BaseException('no')",
        "KeyboardInterrupt",
        "GeneratorExit",
        "type('Mute', (BaseException,), {'__str__': lambda self: self.missing})",
        "type('Quit', (BaseException,), {'__str__': lambda self: __import__('os')._exit(0)})",
        "BaseExceptionGroup('all', [SystemExit(0)])",
    ],
)
def test_any_exception_fails(judge: Attack, error: str) -> None:
    assert judge(f"raise {error}").verdict is Verdict.FAILED


@pytest.mark.parametrize(
    "patch",
    [
        "builtins.AssertionError = type('AssertionError', (), {})",
        "builtins.BaseException = builtins.Exception = ()",
        "builtins.MemoryError = builtins.SystemExit = AssertionError",
        "builtins.exec = builtins.compile = builtins.print = builtins.isinstance = lambda *a, **k: None",
        "builtins.type = lambda *a: os._exit(0)",
        "sys.excepthook = lambda *a: os._exit(0)",
        "sys.modules.clear()",
        "os.write = os.read = os.getpid = lambda *a: 0; os._exit = lambda code: None",
        "sys.flags = __debug__; sys.settrace(None)",
    ],
)
def test_patching_what_assertions_rest_on(judge: Attack, patch: str) -> None:
    assert judge(f"import builtins, os, sys\n{patch}\nassert 1 == 2").verdict in (Verdict.FAILED, Verdict.CRASHED)


@pytest.mark.parametrize(
    "text", ["b'passed'", r"b'passed\t0.1\t0.1\t\n'", "os.urandom(16)", r"b'ready\npassed\t0\t0\t\n'"]
)
def test_writing_to_every_file_is_no_pass(judge: Attack, text: str) -> None:
    program = f"""
        import os
        for handle in range(1024):
            try:
                os.set_blocking(handle, False)
                os.write(handle, {text})
            except OSError:
                pass
        """
    assert judge(program + "    ").verdict is Verdict.FAILED  # even though it ends properly: it has spoilt its report
    assert judge(program + "        os._exit(0)").verdict is Verdict.FAILED


def test_writing_to_the_verdict_of_the_supervisor(judge: Attack) -> None:
    for path in ("/proc/1/fd/1", "/proc/1/mem", "/proc/1/environ"):
        assert judge(f"open({path!r}, 'rb')").verdict is Verdict.BLOCKED
    forged = "import os\nos.write(os.open('/proc/1/fd/1', os.O_WRONLY), b'passed\\t0\\t0\\t\\n')"
    assert judge(forged).verdict is Verdict.BLOCKED


def test_sending_back_all_that_can_be_read(judge: Attack) -> None:
    program = """
        import os, sys
        found, frame = [], sys._getframe()
        while frame:
            found += [value for value in frame.f_locals.values() if isinstance(value, bytes) and len(value) < 100]
            frame = frame.f_back
        for handle in range(3, 64):
            try:
                os.set_blocking(handle, False)
                found.append(os.read(handle, 100))
            except OSError:
                pass
        assert len(found) >= 2
        for handle in range(3, 64):
            for data in found:
                try:
                    os.write(handle, data)
                except OSError:
                    pass
        os._exit(0)
        """
    assert judge(program).verdict is Verdict.FAILED


def test_closing_every_file_is_no_pass(judge: Attack) -> None:
    assert judge("import os\nos.closerange(0, 1024)").verdict is Verdict.FAILED
