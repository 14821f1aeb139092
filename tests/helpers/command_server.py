"""Runs ``kldistill`` commands in forks of one process that has loaded all slow packages. Started by ``commands.py``.

It has never run anything itself, so each fork is as good as a fresh process, without the seconds of its imports. Reads
one command a line from standard input (JSON: arguments, folder, environment, where its outputs go), and answers with
its exit code.
"""

import json
import os
import sys

import matplotlib.pyplot
import peft
import torch
import transformers
import wandb

from kldistill.pipeline import checks, cli, run
from kldistill.report import render_run

LOADED = (matplotlib, peft, torch, transformers, wandb, checks, run, render_run)


def child(job: dict) -> int:
    """The command, in this process."""
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["kldistill", *job["arguments"]]
    try:
        cli.main()
    except SystemExit as error:
        if isinstance(error.code, str):  # as the interpreter does at its end
            print(error.code, file=sys.stderr)
            return 1
        return error.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = child(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
