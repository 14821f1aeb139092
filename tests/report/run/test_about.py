"""What the page says a run was run with."""

from pathlib import Path

from kldistill.report.data import Run
from kldistill.report.run.about import facts

ABOUT = {
    "model": "Some-Model-1B",
    "tokenizer": {"old_size": 49152, "new_size": 49664, "artifact": "abc"},
    "first_token": "<|endoftext|>",
    "seed": 3,
    "kldistill": {"version": "0.1.0", "commit": "0123456789abcdef0123456789abcdef01234567-dirty"},
    "packages": {"torch": "2.9.0"},
    "python": "3.12.1",
    "device": {"kind": "cuda:0", "name": "H100"},
    "threads": 8,
    "processes": 2,
    "host": {"system": "Linux 6.1", "machine": "x86_64", "cores": 16, "memory_bytes": 2**37},
    "started": "2026-01-02T03:04:05+00:00",
    "ended": None,
}


def test_every_fact_is_told_and_what_is_not_known_is_left_out() -> None:
    metrics = {"distill/seconds": 83.0, "distill/tokens_per_second": 1234.0, "distill/peak_memory_bytes": 2.5 * 2**30}
    told = dict(facts(Run(Path("run"), "finished", about=ABOUT, metrics=metrics)))
    assert told == {
        "model": "Some-Model-1B",
        "tokenizer": "49,152 tokens, extended to 49,664",
        "every text begins with": "<|endoftext|>",
        "seed": "3",
        "kldistill": "0.1.0, commit 0123456789ab, with changes of its own",
        "packages": "Python 3.12.1, torch 2.9.0",
        "device": "cuda:0 (H100), 8 threads, 2 processes",
        "host": "Linux 6.1, x86_64, 16 cores, 128 GiB of memory",
        "started": "2026-01-02 03:04:05 UTC",
        "distill": "1:23, 1,234 tokens/s, at most 2.50 GiB of memory",
    }
    assert facts(Run(Path("run"), "finished")) == [], "a run of an older version"
