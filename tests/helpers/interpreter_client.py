"""Stands for one interpreter that ``interpreter_server.py`` forks: same files, signals and end. No slow import here."""

import json
import os
import signal
import socket
import sys

SIZE = 8
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main() -> None:
    """Ask for a fork, hand it every signal, and end as it did."""
    path, executable, *arguments = sys.argv[1:]
    files = [int(name) for name in os.listdir("/dev/fd")]
    files = [file for file in files if is_open(file)]
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    request = {
        "arguments": arguments,
        "executable": executable,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "files": files,
    }
    text = json.dumps(request).encode()
    socket.send_fds(server, [len(text).to_bytes(SIZE, "big")], files)
    server.sendall(text)
    pid = int.from_bytes(server.recv(SIZE), "big")
    for number in FORWARDED:
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    answer = server.recv(SIZE)
    if not answer:
        sys.exit("the server of interpreters has ended")
    code = int.from_bytes(answer, "big", signed=True)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def is_open(file: int) -> bool:
    try:
        os.fstat(file)
    except OSError:  # that of the listing itself
        return False
    return True


main()
