"""Runs inside the sandbox, as its first process: starts one program, watches it, says what became of it.

Stands alone: ``kldistill.evaluation.sandbox.pool`` sends this file's code to a bare interpreter through standard input,
with the program behind it, so it imports nothing of the package and little else (every program pays for each import).
It answers on standard output: ``ready`` and, later, one line with tabs: verdict, CPU seconds, wall seconds, detail.

The program runs in a forked process, which it can do with as it likes. It cannot reach the supervisor: that one is
process 1 of the sandbox, which the kernel lets no process inside kill; it is not "dumpable", so that nobody may trace
it or open its files through ``/proc``; and the system calls that set another process's limits or priority are
forbidden. A supervisor that cannot see what the program uses ends without a verdict, which is no pass. When it ends,
the kernel kills whatever the program left behind.

A program passes only if a secret reaches the supervisor which is made after the program has been forked off. It lies
in a pipe until the last line is done, then it is joined with a key from memory and sent; anything else in the report,
before or after, spoils it. A program that exits early, or writes to every file that it has, or sends back what it can
read or what it finds in the frames above it, does not pass. What shares an interpreter with its assertions can cheat,
though: a program written against this very file could gather pipe and key and imitate the last step, a trace function
can jump over lines, and an answer can be an object that is equal to everything. Only assertions in another process
would end that, and the published tests are not written so.
"""

import errno
import os
import resource
import select
import sys
import time

TICK = 0.02  # seconds between two looks at the processes
SECRET_BYTES = 16
MESSAGE_BYTES = 4096  # no pipe tears a message of that size
PR_SET_DUMPABLE, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 4, 22, 2
DENIED = {
    *(errno.EPERM, errno.EACCES, errno.EROFS),
    *(errno.ENOSPC, errno.EFBIG, errno.EMFILE, errno.EAGAIN),
    *(errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ECONNREFUSED),
}


def main(program, seccomp_filter, cpu_seconds, wall_seconds, memory_bytes, processes, file_bytes, output_bytes):
    """Run ``program`` (UTF-8).

    ``seccomp_filter`` is the seccomp filter, or ``None`` outside a sandbox; the limits are those of ``Limits``.
    """
    import _signal  # pyright: ignore[reportMissingImports]  # signal.py costs more than all the rest

    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)  # process 1 gets those signals that it handles
    libc = None
    if seccomp_filter is not None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
    report, report_end = os.pipe()
    output, output_end = os.pipe()
    secret_end, secret = os.pipe()
    key = os.urandom(SECRET_BYTES)
    child = os.fork()
    if child == 0:
        for handle in (report, output, secret):
            os.close(handle)
        confine(libc, seccomp_filter, cpu_seconds, memory_bytes, file_bytes)
        os.dup2(output_end, 1)
        os.dup2(output_end, 2)
        os.close(output_end)
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        os.write(report_end, b".")
        os.read(secret_end, 1)
        run(program, report_end, secret_end, key)
    for handle in (report_end, output_end, secret_end):
        os.close(handle)
    if libc is not None and libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        sys.exit("prctl(PR_SET_DUMPABLE) failed")
    if os.read(report, 1) != b".":
        sys.exit("the limits could not be set")
    os.write(1, b"ready\n")
    started = time.monotonic()
    nonce = os.urandom(SECRET_BYTES)
    os.write(secret, b"g" + nonce)  # the first byte lets the program go
    watched = Watched(child, alone=seccomp_filter is not None)
    verdict, detail = watch(watched, report, output, cpu_seconds, wall_seconds, processes, output_bytes,
                            proof=joined(nonce, key))  # fmt: skip
    fields = (verdict, f"{watched.spent():.3f}", f"{time.monotonic() - started:.3f}", detail)
    os.write(1, "\t".join(fields).encode("utf-8", "replace") + b"\n")
    os._exit(0)


def joined(nonce, key):
    """What a program that has reached its end reports."""
    return bytes(a ^ b for a, b in zip(nonce, key, strict=True))


def confine(libc, seccomp_filter, cpu_seconds, memory_bytes, file_bytes):
    """Set the kernel's limits for this process.

    The CPU limit is a second or two late: the watch comes first, and is the finer one. The number of processes is not
    limited here: that limit would not bind root, and before Linux 5.14 it would count all processes of the user.
    """
    limits = {
        resource.RLIMIT_CPU: int(cpu_seconds) + 2,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
    }
    if sys.platform == "linux":  # macOS refuses it
        limits[resource.RLIMIT_STACK] = 8 << 20
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (least, least))
    if seccomp_filter is None:
        return
    import ctypes

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))

    steps = Filter(len(seccomp_filter) // 8, seccomp_filter)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(steps), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP) failed")


# ---- in the program's process


def run(program, report, secret, key):
    """Run the program as ``__main__``, report, and leave without ado."""
    read, write, leave, getpid, me = os.read, os.write, os._exit, os.getpid, os.getpid()  # it may patch the module
    join, explain, length = joined, failure, SECRET_BYTES
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["program"]
    try:
        try:
            source = program.decode("utf-8", "surrogatepass")
            exec(compile(source, "<program>", "exec", dont_inherit=True), module.__dict__)
        except MemoryError:
            message = b"crashed\tMemoryError"
        except BaseException as error:
            message = explain(error)
        else:
            message = join(read(secret, length), key)
        if getpid() == me:  # without a sandbox, a process that the program forked comes along here, too
            write(report, message)
    finally:
        leave(0)


def failure(error):
    """The report of an exception: verdict, tab, detail."""
    detail = f"{type(error).__name__}"
    try:
        detail += f": {error}" if str(error) else ""
    except BaseException:  # the program's own exception may do anything when asked for its text
        detail += ": (without a text)"
    verdict = "failed"
    if isinstance(error, SystemExit):
        detail += " before the program's end"
    elif isinstance(error, OSError):
        causes = (error, getattr(error, "reason", None), error.__cause__, error.__context__)
        if any(isinstance(cause, OSError) and denied(cause) for cause in causes):
            verdict = "blocked"
        elif error.errno == errno.ENOMEM:
            verdict = "crashed"
    elif isinstance(error, SystemError):  # as when there is no memory for a frame
        verdict = "crashed"
    elif isinstance(error, RuntimeError) and detail == "RuntimeError: can't start new thread":
        verdict = "blocked"
    line = "".join(c if c.isprintable() else " " for c in detail[:200])
    return f"{verdict}\t{line}".encode("utf-8", "replace")


def denied(error):
    """Whether it was the sandbox that said no. Names cannot be looked up; all but Python and ``/tmp`` is hidden."""
    if error.errno in DENIED or (error.errno or 0) < 0:  # negative: of getaddrinfo
        return True
    hidden = isinstance(error.filename, str) and error.filename.startswith("/")
    return error.errno == errno.ENOENT and hidden and not error.filename.startswith("/tmp/")


# ---- in the supervisor's process


class Watched:
    """The program's processes: in a sandbox (``alone``) there is but one; outside, those of this session."""

    def __init__(self, child, alone):
        self.child, self.session = child, None if alone else str(os.getsid(0)).encode()
        self.status = None  # of the program's first process, once it has ended
        self.reaped = 0.0  # CPU seconds of processes that have ended
        self.alive = 0.0
        self.kept = 0.0  # seconds in which others had the cores
        self.tick = 1 / os.sysconf("SC_CLK_TCK")

    def spent(self):
        """CPU seconds so far."""
        return self.reaped + self.alive

    def reap(self):
        """Take leave of processes that have ended. True once the program's first one has."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self.reaped += usage.ru_utime + usage.ru_stime
            if pid == self.child:
                self.status, self.alive = status, 0.0
        return self.status is not None

    def look(self):
        """Count CPU seconds, and return the number of threads of all processes."""
        pids = [self.child] if self.session is None else others()
        threads, ticks = 0, 0
        for pid in pids:
            try:
                with open(f"/proc/{pid}/stat", "rb") as file:
                    text = file.read()
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ESRCH):
                    raise  # blind, the supervisor has no verdict to give
                continue  # it has just ended
            fields = text[text.rindex(b")") + 2 :].split()
            if self.session in (None, fields[3]):
                ticks += sum(map(int, fields[11:15]))  # its own and those of its children that have ended
                threads += int(fields[17])
        self.alive = ticks * self.tick
        self.kept = max(self.kept, kept_waiting(self.child))
        return threads


def others():
    """Process ids of the machine but for this process; none on a system without ``/proc``."""
    names = os.listdir("/proc") if os.path.isdir("/proc") else []
    return [name for name in names if name.isdigit() and int(name) != os.getpid()]


def kept_waiting(pid):
    """Seconds in which a process could have run, had it had a core; 0 where that is not counted."""
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def watch(watched, report, output, cpu_seconds, wall_seconds, processes, output_bytes, proof):
    """Wait until the program ends or breaks a limit; verdict and detail."""
    poller = select.poll()
    for handle in (report, output):
        poller.register(handle, select.POLLIN)
    message, written, patience = b"", 0, TICK
    started = looked = time.monotonic()
    while not watched.reap():
        for handle, _ in poller.poll(patience * 1000):
            data = os.read(handle, 1 << 16)
            if not data:
                poller.unregister(handle)
            if handle == output:
                written += len(data)
            else:
                message = (message + data)[:MESSAGE_BYTES]
                patience = 0.001  # it is about to end
        if written > output_bytes:
            break
        now = time.monotonic()
        if now - looked < TICK:
            continue
        looked = now
        if watched.look() > processes:
            return "blocked", f"more than {processes} threads"
        if watched.spent() > cpu_seconds:
            return "timed_out", f"more than {cpu_seconds:g} CPU seconds"
        if now - started - watched.kept > wall_seconds:
            return "timed_out", f"more than {wall_seconds:g} seconds, {watched.spent():.2f} of them computing"
    if written + len(drained(output)) > output_bytes:
        return "crashed", f"more than {output_bytes} bytes of output"
    return ended(watched, message + drained(report), cpu_seconds, proof)


def drained(handle):
    """What is left in a pipe, whether or not someone still holds its other end."""
    os.set_blocking(handle, False)
    try:
        return os.read(handle, 1 << 20)
    except BlockingIOError:
        return b""


def ended(watched, message, cpu_seconds, proof):
    """Verdict and detail of a program that has ended by itself or by the kernel."""
    code = os.waitstatus_to_exitcode(watched.status)
    if watched.spent() > cpu_seconds:  # what it used after the last look counts too
        return "timed_out", f"more than {cpu_seconds:g} CPU seconds"
    if code < 0:
        return "crashed", f"killed by signal {-code}"
    if code == 0 and message == proof:
        return "passed", ""
    verdict, tab, detail = message.partition(b"\t")
    if tab and verdict in (b"failed", b"blocked", b"crashed"):
        return verdict.decode(), " ".join(detail.decode("utf-8", "replace").split())
    if message:
        return "failed", "it wrote to the pipe of its own verdict"
    return "failed", f"exit status {code} before the program's end"
