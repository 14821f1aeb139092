"""The part of bench.py that trains: steps against their floor, the memory that they take, steps of two processes."""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from sysconfig import get_path
from typing import Any

import psutil
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from kldistill import losses
from kldistill.corpus.documents import Document
from kldistill.corpus.snippets import cut
from kldistill.losses.weighted import Term
from kldistill.model.load import load_original, load_original_tokenizer
from kldistill.rows.rows import Rows
from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.devices import sizes
from kldistill.runtime.shares import Share
from kldistill.tokens.artifact import load_extended_tokenizer
from kldistill.tokens.encoding import encode_snippets
from kldistill.tokens.pieces import PieceTable
from kldistill.training import adapters
from kldistill.training.batches import Batch, Steps, schedule
from kldistill.training.compiled import compile_layers
from kldistill.training.config import LoraConfig
from kldistill.training.cuts import TwoCuts
from kldistill.training.loop import forget_peak, peak_memory
from kldistill.training.objective import Objective
from kldistill.training.sampled import sampling
from kldistill.training.states import States


def python_sources(megabytes: float) -> Iterator[str]:
    """Python files of the installed packages, in the order of their paths, up to a size."""
    left = megabytes * 1e6
    for path in sorted(Path(get_path("purelib")).rglob("*.py")):
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if left <= 0:
            return
        left -= len(text.encode())
        yield text


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds (this process and its finished children) of a call, and of all that it started."""
    wait()
    before, wall = os.times(), time.perf_counter()
    function()
    wait()
    after, seconds = os.times(), time.perf_counter() - wall
    return seconds, sum(after[:4]) - sum(before[:4])


def wait() -> None:
    """Until an accelerator has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def train(args: argparse.Namespace) -> None:
    """Training steps on a finished run's artifacts, against the time that their products of matrices alone would take.

    The floor is counted, not measured step by step: 4 FLOP a weight of the body and token (forward, and back to what
    goes in), 2 a weight of the head three times, at the rate that a product of the layers' own shapes reaches here,
    which is measured between the steps. So other work on the machine slows both down alike. Seconds are the
    processor's on a CPU, and the clock's on an accelerator. With ``--sampled`` every step runs once more with softmaxes
    over so many of the old tokens, and the two gradients are compared.
    """
    device, size = torch.device(args.device), sizes(RuntimeConfig(device=args.device, chunk=args.chunk))
    half = args.precision == "bf16"
    objective, cuts = of_run(args)
    objective.to(device)
    if args.compile:
        compile_layers(objective.student)
    student, model = objective.student, objective.student.model
    order = schedule(cuts.lengths, args.batch, args.steps + 2, 0)
    ways = {"all": Steps(cuts, order, chunk=size.chunk, budget=size.pass_tokens)}
    if columns := sampling(student, cuts, cuts.states.hidden, args.sampled, 0):
        ways["sampled"] = Steps(cuts, order, chunk=size.chunk, budget=size.pass_tokens, sampling=columns)
    optimizer = torch.optim.AdamW([parameter for parameter in student.parameters() if parameter.requires_grad], lr=1e-6)
    head = student.lm_head.weight.numel()
    body = sum(parameter.numel() for parameter in student.body.parameters()) - student.embedding.weight.numel()
    config = model.config.get_text_config()
    spent, floor, rates, apart = dict.fromkeys(ways, 0.0), 0.0, list[float](), list[float]()
    new = old = 0

    def step(passes: list[Batch]) -> None:
        optimizer.zero_grad()
        for batch in passes:
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss = objective(batch.to(device))[0]
            loss.backward()
        optimizer.step()

    for number in range(args.steps + 2):
        passes = ways["all"][number]
        # In turns, as what runs second finds the texts' memory warm.
        turns = list(ways) if number % 2 else list(reversed(ways))
        times, gradients = dict[str, tuple[float, float]](), dict[str, torch.Tensor]()
        for way in turns:
            times[way] = timed(partial(step, ways[way][number]))
            gradients[way] = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
        kind = {"device": device, "dtype": torch.bfloat16 if half else torch.float32}
        left = torch.randn(sum(batch.new_ids.numel() for batch in passes), config.hidden_size, **kind)
        right = torch.randn(config.hidden_size, config.intermediate_size, **kind)
        taken, used = timed(lambda left=left, right=right: [left @ right for _ in range(100)])
        rate = 100 * 2 * left.numel() * right.shape[1] / (used if device.type == "cpu" else taken)
        if number < 2:
            forget_peak(device)
            continue  # the first two warm up
        apart.append((gradients[turns[0]] - gradients[turns[-1]]).norm().item() / gradients["all"].norm().item())
        for way, (wall, cpu) in times.items():
            spent[way] += cpu if device.type == "cpu" else wall
        rates.append(rate)
        read = sum(len(cuts.states.ids[index]) for index in ways["all"].order[number])
        n_tokens = sum(batch.n_tokens for batch in passes)
        floor += (n_tokens * (4 * body + 2 * 2 * head) + read * 2 * head) / rate
        new, old = new + n_tokens, old + read
    print(f"{args.steps} steps of {args.loss}, LoRA rank {args.lora}, {new / args.steps:.0f} new tokens each")
    seconds, on = ("a processor second", "a thread") if device.type == "cpu" else ("a second", f"on {device.type}")
    print(f"{new / spent['all']:.0f} new and {old / spent['all']:.0f} old tokens {seconds}; products reach "
          f"{sum(rates) / len(rates) / 1e9:.0f} GFLOP/s {on}")  # fmt: skip
    if "sampled" in ways:
        print(f"with distill.sampled_softmax={args.sampled} they take {spent['sampled'] / spent['all']:.3f} of that")
        print(f"and a step's gradient differs by {min(apart):.1%} to {max(apart):.1%} of its length")
    print(f"{spent['all'] / floor:.2f} times the floor; at most {peak_memory(device) / 1e9:.2f} GB in this process")


def memory(args: argparse.Namespace) -> None:
    """The most that training on a large corpus holds, with a teacher that runs in the same step and stores nothing.

    The text is the Python of the installed packages in snippets of 50 or so tokens. Both cuts of all of it are held.
    """
    pieces, tokenizer = of_tokens(args)
    documents = (Document(str(number), text) for number, text in enumerate(python_sources(3.3 * args.tokens / 1e6)))
    snippets = list(cut(documents, args.bytes))
    texts = States.of(snippets, encode_snippets(load_original_tokenizer(folders_of(args)["model"]), snippets))
    cuts = TwoCuts.of(texts, tokenizer, pieces)
    held = resident()
    objective, _ = of_run(args)
    order = schedule(cuts.lengths, args.batch, args.steps, 0)
    size = sizes(RuntimeConfig(device="cpu", chunk=args.chunk, pass_tokens=args.pass_tokens))
    batches = Steps(cuts, order, chunk=size.chunk, online=True, budget=size.pass_tokens)
    optimizer = torch.optim.AdamW([each for each in objective.parameters() if each.requires_grad], lr=1e-6)
    before = resident()
    forget_peak(torch.device("cpu"))
    for number in range(args.steps):
        for batch in batches[number]:
            objective(batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    count = sum(map(len, texts.ids)) / 1e6
    print(f"{count:.2f}M tokens in {len(snippets):,} snippets, {args.batch} a step, {args.loss}, LoRA rank {args.lora}")
    print(f"{held / 1e9:.2f} GB with the text, {before / 1e9:.2f} GB with the model")
    print(f"at most {peak_memory(torch.device('cpu')) / 1e9:.2f} GB in {args.steps} steps")


def resident() -> float:
    """Bytes that this process holds."""
    return float(psutil.Process().memory_info().rss)


def folders_of(args: argparse.Namespace) -> dict[str, Path]:
    """The artifacts of the run in ``args.folder``."""
    record = json.loads((Path(args.folder) / "run.json").read_text())
    return {name: Path(args.folder) / where for name, where in record["artifacts"].items()}


def of_tokens(args: argparse.Namespace) -> tuple[PieceTable, Any]:
    """The table and the extended tokenizer of the run in ``args.folder``."""
    folder = folders_of(args)["tokens"]
    return PieceTable.load(folder), load_extended_tokenizer(folder)


def of_run(args: argparse.Namespace) -> tuple[Objective, TwoCuts]:
    """What the run in ``args.folder`` trained: the student as it began, with the losses asked for, and its text."""
    folders, (pieces, tokenizer) = folders_of(args), of_tokens(args)
    learns = adapters.Training("lora" if args.lora else "rows", LoraConfig(r=args.lora), checkpointing=args.again)
    rows = Rows.load(folders["init"])
    student, _ = adapters.unfreeze(load_original(folders["model"]), rows, pieces.old_size, learns)
    terms = {name: Term(getattr(losses, name), 1.0) for name in args.loss.split(",")}
    return Objective(student, terms), TwoCuts.read(folders["teacher"], "train", tokenizer, pieces)


def processes(args: argparse.Namespace) -> None:
    """Training steps in one process of one thread, and the same steps shared by two such processes (gloo)."""
    seconds = {}
    for world in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            spawn(_one_of, (world, args, folder), nprocs=world)
            seconds[world] = float((Path(folder) / "seconds").read_text())
        print(f"{args.steps} steps of {args.batch} snippets, {world} of one thread: {seconds[world]:.1f} s", flush=True)
    print(f"two are {seconds[1] / seconds[2]:.2f} times as fast as one")


def _one_of(rank: int, world: int, args: argparse.Namespace, folder: str) -> None:
    """One process's part of ``processes``; the first writes the seconds into ``folder``."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    objective, cuts = of_run(args)
    order = schedule(cuts.lengths, args.batch, args.steps + 1, 0)
    chunk = sizes(RuntimeConfig(device="cpu", chunk=args.chunk)).chunk
    batches = Steps(cuts, order, chunk=chunk, share=Share(rank, world))
    module = DistributedDataParallel(objective) if world > 1 else objective
    optimizer = torch.optim.AdamW([each for each in objective.parameters() if each.requires_grad], lr=1e-6)
    begun = 0.0
    for number in range(args.steps + 1):
        (batch,) = batches[number]
        module(batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        if number == 0:  # which warms up
            distributed.barrier()
            begun = time.perf_counter()
    distributed.barrier()
    if rank == 0:
        (Path(folder) / "seconds").write_text(str(time.perf_counter() - begun))
    distributed.destroy_process_group()
