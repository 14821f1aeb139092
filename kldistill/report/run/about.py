"""What a run was run with, as lines for the page: model, tokenizer, program, machine, times, what the training took."""

from collections.abc import Iterator
from datetime import datetime

from kldistill.report.data import Run
from kldistill.runtime.progress import count, duration

_GIB = 1024**3


def facts(run: Run) -> list[tuple[str, str]]:
    """(what, value) of all that ``run.json`` tells; what an older run does not tell is left out."""
    return [(name, value) for name, value in _facts(run) if value]


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    about = run.about
    if not about:
        return
    yield "model", str(about.get("model", ""))
    if sizes := about.get("tokenizer"):
        yield "tokenizer", f"{sizes['old_size']:,} tokens, extended to {sizes['new_size']:,}"
    yield "every text begins with", str(about.get("first_token") or "")
    yield "seed", str(about.get("seed", ""))
    program = about.get("kldistill", {})
    commit = f", commit {program['commit'][:12]}" if program.get("commit") else ""
    dirty = ", with changes of its own" if str(program.get("commit")).endswith("-dirty") else ""
    yield "kldistill", f"{program.get('version', '')}{commit}{dirty}"
    packages = ", ".join(f"{name} {version}" for name, version in about.get("packages", {}).items())
    yield "packages", f"Python {about.get('python', '')}, {packages}"
    device = about.get("device", {})
    threads, processes = about.get("threads"), about.get("processes", 1)
    several = f", {processes} processes" if processes > 1 else ""
    yield "device", f"{device.get('kind', '')} ({device.get('name', '')}), {threads} threads{several}"
    if host := about.get("host"):
        memory = f"{host['memory_bytes'] / _GIB:.0f} GiB"
        yield "host", f"{host['system']}, {host['machine']}, {host['cores']} cores, {memory} of memory"
    yield "started", _time(about.get("started"))
    yield "ended", _time(about.get("ended"))
    for stage in ("distill", "finetune"):
        if (seconds := run.metrics.get(f"{stage}/seconds")) is not None:
            rate = run.metrics.get(f"{stage}/tokens_per_second", 0.0)
            peak = run.metrics.get(f"{stage}/peak_memory_bytes", 0.0) / _GIB
            yield f"{stage}", f"{duration(seconds)}, {count(rate)} tokens/s, at most {peak:.2f} GiB of memory"


def _time(text: str | None) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S} UTC" if text else ""
