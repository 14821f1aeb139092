"""Runs inside the sandbox, as its first process: starts one program, watches it, says what became of it.

Stands alone: ``kldistill.sandbox.pool`` sends this file's code to a bare interpreter through standard input, with the
program behind it, so it imports nothing of the package and little of the standard library (each import is paid for
every program). It answers on standard output: ``ready`` and, later, one line with tabs: verdict, CPU seconds, wall
seconds, detail.

The program runs in a forked process, which it can do with as it likes. It cannot reach the supervisor: that one is
process 1 of the sandbox, which the kernel lets no process inside kill; it is not "dumpable", so that nobody may trace
it or open its files through ``/proc``; when it ends, the kernel kills whatever the program left behind.

A program passes only if a secret reaches the supervisor which is made after the program has been forked off. It lies
in a pipe until the last line is done, then is joined with a key from memory and sent; anything else in the report, before
or after, spoils it. A program that exits early, or writes to every file it has, or sends back all that it can read or
finds in the frames above it, does not pass. What shares an interpreter with the assertions can cheat, though: a program
written against this very file could gather pipe and key and imitate the last step, a trace function can jump over lines,
and an answer can be an object that is equal to everything. Only running the assertions in another process would end
that, and the published tests do not allow it.
"""

import errno
import os
import resource
import select
import sys
import time

TICK = 0.02  # seconds between two looks at the processes
SECRET_BYTES = 16
DENIED = {
    *(errno.EPERM, errno.EACCES, errno.EROFS),
    *(errno.ENOSPC, errno.EFBIG, errno.EMFILE, errno.EAGAIN),
    *(errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ECONNREFUSED),
}


def main(program, cpu_seconds, wall_seconds, memory_bytes, processes, file_bytes, output_bytes, boxed):
    """Run ``program`` (UTF-8). Limits as in ``Limits``; ``boxed`` says whether this is process 1 of a sandbox."""
    os.write(1, b"ready\n")
    import _signal  # signal.py itself costs more than the rest of this file

    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)  # process 1 gets those signals that it handles
    report, report_end = os.pipe()
    output, output_end = os.pipe()
    secret_end, secret = os.pipe()
    key = os.urandom(SECRET_BYTES)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        for handle in (report, output, secret):
            os.close(handle)
        os.dup2(output_end, 1)
        os.dup2(output_end, 2)
        os.close(output_end)
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        confine(cpu_seconds, memory_bytes, processes if boxed else None, file_bytes)
        os.read(secret_end, 1)
        run(program, report_end, secret_end, key)
    for handle in (report_end, output_end, secret_end):
        os.close(handle)
    if boxed:
        hide()
    nonce = os.urandom(SECRET_BYTES)
    os.write(secret, b"g" + nonce)  # the first byte lets the program go
    watched = Watched(child, boxed)
    verdict, detail = watch(watched, report, output, started, cpu_seconds, wall_seconds, memory_bytes, processes,
                            output_bytes, joined(nonce, key))
    fields = (verdict, f"{watched.spent():.3f}", f"{time.monotonic() - started:.3f}", detail)
    os.write(1, "\t".join(fields).encode("utf-8", "replace") + b"\n")
    os._exit(0)


def joined(nonce, key):
    """What a program that reached its end reports."""
    return bytes(a ^ b for a, b in zip(nonce, key, strict=True))


def hide():
    """Close this process's files and memory in ``/proc`` to the program, which runs under the same user."""
    import ctypes

    if ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) != 0:  # PR_SET_DUMPABLE
        sys.exit("prctl(PR_SET_DUMPABLE) failed")


def confine(cpu_seconds, memory_bytes, processes, file_bytes):
    """Set the kernel's limits for this process and those that it starts. The CPU limit is a second late: the watch comes
    first, and sees all processes together.
    """
    limits = {
        resource.RLIMIT_CPU: int(cpu_seconds) + 2,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_STACK: 8 << 20,
    }
    if processes is not None:  # outside a sandbox it would count all the user's processes
        limits[resource.RLIMIT_NPROC] = processes + 1  # and the supervisor
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    os.nice(5)  # so that the watch comes in time


# ---- in the program's process


def run(program, report, secret, key):
    """Run the program as ``__main__``, report, and leave without ado."""
    read, write, leave, getpid, me = os.read, os.write, os._exit, os.getpid, os.getpid()  # it may patch the module
    join, explain, length = joined, failure, SECRET_BYTES
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["program"]
    try:
        exec(compile(program.decode("utf-8", "surrogatepass"), "<program>", "exec", dont_inherit=True), module.__dict__)
    except MemoryError:
        message = b"crashed\tMemoryError"
    except BaseException as error:
        message = explain(error)
    else:
        message = None
    finally:
        if sys.exc_info()[0] is not None:  # explaining the exception raised one
            leave(1)
    if getpid() == me:  # a process that the program forked comes along here, too
        write(report, message or join(read(secret, length), key))
    leave(0)


def failure(error):
    """The report of an exception: verdict, tab, detail."""
    try:
        detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    except BaseException:
        detail = type(error).__name__
    verdict = "failed"
    if isinstance(error, SystemExit):
        detail += " before the program's end"
    elif isinstance(error, OSError):
        causes = (error, getattr(error, "reason", None), error.__cause__, error.__context__)
        if any(isinstance(cause, OSError) and denied(cause) for cause in causes):
            verdict = "blocked"
        elif error.errno == errno.ENOMEM:
            verdict = "crashed"
    elif isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        verdict = "blocked"
    line = "".join(c if c.isprintable() else " " for c in detail.strip()[:200])
    return f"{verdict}\t{line}".encode("utf-8", "replace")


def denied(error):
    """Whether it was the sandbox that said no. Names cannot be looked up; all but Python and ``/tmp`` is hidden."""
    if error.errno in DENIED or (error.errno or 0) < 0:  # negative: of getaddrinfo
        return True
    hidden = isinstance(error.filename, str) and error.filename.startswith("/")
    return error.errno == errno.ENOENT and hidden and not error.filename.startswith("/tmp/")


# ---- in the supervisor's process


class Watched:
    """The program's processes, as far as they are known.

    In the sandbox these are all that ``/proc`` shows but the supervisor; outside, those of this session.
    """

    def __init__(self, child, boxed):
        self.child, self.session = child, None if boxed else str(os.getsid(0)).encode()
        self.status = None  # of the program's first process, once it has ended
        self.reaped = 0.0  # CPU seconds of processes that have ended
        self.alive = 0.0
        self.resident = {}  # bytes of memory of each process
        self.tick = 1 / os.sysconf("SC_CLK_TCK")
        self.page = os.sysconf("SC_PAGE_SIZE")

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
        """Processes with their threads, and bytes of memory (shared ones are counted for each)."""
        tasks, ticks, resident = 0, 0, {}
        own = str(os.getpid())
        for pid in os.listdir("/proc") if os.path.isdir("/proc") else ():
            if not pid.isdigit() or pid == own:
                continue
            try:
                with open(f"/proc/{pid}/stat", "rb") as file:
                    text = file.read()
            except OSError:  # it has just ended
                continue
            fields = text[text.rindex(b")") + 2 :].split()
            if self.session is None or fields[3] == self.session:
                ticks += sum(map(int, fields[11:15]))
                tasks += int(fields[17])
                resident[pid] = int(fields[21]) * self.page
        self.alive, self.resident = ticks * self.tick, resident
        return tasks, sum(resident.values())

    def memory(self):
        """Bytes of memory, each shared page counted once. Slow."""
        return sum(map(self.proportional, self.resident))

    def proportional(self, pid):
        """Bytes of one process, its part of what it shares."""
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                lines = file.read().split(b"\n")
        except PermissionError:  # it hides: then all of it counts
            return self.resident.get(pid, 0)
        except OSError:  # it has just ended
            return 0
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(b"Pss:"))


def watch(watched, report, output, started, cpu_seconds, wall_seconds, memory_bytes, processes, output_bytes, proof):
    """Wait until the program ends or breaks a limit; verdict and detail."""
    poller = select.poll()
    poller.register(report, select.POLLIN)
    poller.register(output, select.POLLIN)
    message, written, looked = b"", 0, started
    patience = TICK
    while not watched.reap():
        for handle, _ in poller.poll(patience * 1000):
            data = os.read(handle, 1 << 16)
            if not data:
                poller.unregister(handle)
            if handle == output:
                written += len(data)
            else:
                message = (message + data)[:4096]
                patience = 0.001  # it is about to end
        if written > output_bytes:
            return "crashed", f"more than {output_bytes} bytes of output"
        now = time.monotonic()
        if now - looked < TICK:
            continue
        looked = now
        tasks, memory = watched.look()
        if tasks > processes:
            return "blocked", f"more than {processes} processes"
        if memory > memory_bytes and watched.memory() > memory_bytes:
            return "crashed", f"more than {memory_bytes} bytes of memory"
        if watched.spent() > cpu_seconds:
            return "timed_out", f"more than {cpu_seconds:g} CPU seconds"
        if now - started > wall_seconds:
            return "timed_out", f"more than {wall_seconds:g} seconds, {watched.spent():.2f} of them computing"
    message += drained(report)
    written += len(drained(output, output_bytes + 1))
    if written > output_bytes:
        return "crashed", f"more than {output_bytes} bytes of output"
    return ended(watched, message, cpu_seconds, proof)


def drained(handle, most=4096):
    """What is left in a pipe, whether or not someone still holds its other end."""
    os.set_blocking(handle, False)
    data = b""
    while len(data) < most:
        try:
            more = os.read(handle, 1 << 16)
        except BlockingIOError:
            break
        if not more:
            break
        data += more
    return data


def ended(watched, message, cpu_seconds, proof):
    """Verdict and detail of a program that has ended by itself or by the kernel."""
    code = os.waitstatus_to_exitcode(watched.status)
    if code < 0 and watched.spent() >= cpu_seconds:
        return "timed_out", f"more than {cpu_seconds:g} CPU seconds"
    if code < 0:
        return "crashed", f"killed by signal {-code}"
    if message == proof and code == 0:
        return "passed", ""
    verdict, tab, detail = message.partition(b"\t")
    if tab and verdict in (b"failed", b"blocked", b"crashed"):
        return verdict.decode(), " ".join(detail.decode("utf-8", "replace").split())
    if message:
        return "failed", "it wrote to the pipe of its own verdict"
    return "failed", f"exit status {code} before the program's end"
