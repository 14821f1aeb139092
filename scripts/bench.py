"""Measure what must be fast. Prints figures of this machine, and ratios between two ways within the same run.

python scripts/bench.py tokens --tokenizer FOLDER [--megabytes 5] [--merges 512] [--plain]
python scripts/bench.py generation --model FOLDER [--tasks 164] [--batch 64] [--single 12]
python scripts/bench.py train --run FOLDER [--loss kl,ce] [--lora 16] [--steps 8] [--batch 2]
python scripts/bench.py processes --run FOLDER [--loss kl,ce] [--lora 16] [--steps 8] [--batch 4]
python scripts/bench.py memory --run FOLDER [--loss kl,ce] [--lora 16] [--steps 8] [--batch 16] [--again]
python scripts/bench.py all --run FOLDER
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from sysconfig import get_path
from typing import Any

import psutil
import torch
from tokenizers import Tokenizer
from torch import distributed
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer

from kldistill import losses
from kldistill.corpus.documents import Document
from kldistill.corpus.snippets import cut
from kldistill.evaluation.generation.batching import Completion, Request, generate
from kldistill.evaluation.generation.layout import by_columns
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.evaluation.suites.humaneval import HumanEval
from kldistill.evaluation.suites.task import Sources
from kldistill.losses.weighted import Term
from kldistill.model.load import load_original, load_original_tokenizer, old_size
from kldistill.rows.rows import Rows
from kldistill.runtime.shares import Share
from kldistill.tokens.artifact import load_extended_tokenizer
from kldistill.tokens.boundaries import widen
from kldistill.tokens.definition import Definition, definition
from kldistill.tokens.encoding import encode, encode_snippets
from kldistill.tokens.merges import Rules, choose
from kldistill.tokens.pieces import PieceTable
from kldistill.tokens.stage import entries_of, use_cores
from kldistill.tokens.words import count_words
from kldistill.training import adapters
from kldistill.training.batches import Batch, Steps, schedule
from kldistill.training.config import LoraConfig
from kldistill.training.cuts import TwoCuts
from kldistill.training.loop import forget_peak, peak_memory
from kldistill.training.objective import Objective
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
    """Wall and processor seconds (this process and its finished children) of a call."""
    before, wall = os.times(), time.perf_counter()
    function()
    after, seconds = os.times(), time.perf_counter() - wall
    return seconds, sum(after[:4]) - sum(before[:4])


def plain(tokenizer: Tokenizer, texts: list[str], merges: int) -> None:
    """Continued BPE as one writes it in plain Python: a counter of words, an index from pairs to words."""
    words: Counter[tuple[int, ...]] = Counter()
    for text in texts:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        word: list[int] = []
        last = None
        for index, place in zip(encoding.ids, encoding.word_ids, strict=True):
            if place != last and word:
                words[tuple(word)] += 1
                word = []
            word.append(index)
            last = place
    pieces = {number: list(word) for number, word in enumerate(words) if len(word) > 1}
    weight = dict(enumerate(words.values()))
    counts: Counter[tuple[int, int]] = Counter()
    where: dict[tuple[int, int], set[int]] = defaultdict(set)
    for number, word in pieces.items():
        for pair in pairwise(word):
            counts[pair] += weight[number]
            where[pair].add(number)
    for new in range(10**7, 10**7 + merges):
        best = max(counts, key=counts.__getitem__)
        for number in where.pop(best):
            word = pieces[number]
            for pair in pairwise(word):
                counts[pair] -= weight[number]
            joined: list[int] = []
            for piece in word:
                if joined and (joined[-1], piece) == best:
                    joined[-1] = new
                else:
                    joined.append(piece)
            pieces[number] = joined
            for pair in pairwise(joined):
                counts[pair] += weight[number]
                where[pair].add(number)
        counts.pop(best, None)


def tokens(args: argparse.Namespace) -> None:
    """Count the words of Python sources and choose merges."""
    use_cores(args.workers)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    spec, size = definition(tokenizer), old_size(tokenizer)
    wide = Definition(widen(spec, args.boundary), size, args.boundary)
    texts = list(python_sources(args.megabytes))
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    rules = Rules(entries_of(tokenizer, spec, size))
    kept = {}

    def count() -> None:
        kept["words"] = count_words(wide, texts, args.workers)

    counting, counting_cpu = timed(count)
    choosing, choosing_cpu = timed(lambda: choose(kept["words"], rules, args.merges))
    ours = counting + choosing
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{megabytes:.1f} MB of Python, {kept['words'].tokens / 1e6:.1f}M tokens, {args.merges} merges")
    print(f"counting  {counting:7.2f} s  ({counting_cpu:.2f} s of processor, {megabytes / counting:.1f} MB/s)")
    print(f"choosing  {choosing:7.2f} s  ({choosing_cpu:.2f} s of processor)")
    print(f"together  {ours:7.2f} s, at most {peak:.2f} GB")
    if args.plain:
        seconds, _ = timed(lambda: plain(Tokenizer.from_str(json.dumps(wide)), texts, args.merges))
        print(f"plain Python loop {seconds:.2f} s: {seconds / ours:.1f} times as long")


def generation(args: argparse.Namespace) -> None:
    """Write completions of HumanEval, batched, and some of them with a loop of single calls of model.generate.

    The ratio is of tokens a second: those of the loop are of every so many-th task, as all would take long.
    """
    sources = Sources(Path(), Path(), passes=None)  # HumanEval needs none of them
    tasks = HumanEval().tasks(sources)[: args.tasks]
    requests = [Request(task.prompt, task.budget, task.stop) for task in tasks]
    model: Any = by_columns(AutoModelForCausalLM.from_pretrained(args.model).eval())
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    spelling = Spelling(tokenizer)
    written: dict[int, Completion] = {}
    chosen = range(0, len(requests), max(1, len(requests) // args.single))

    def batched() -> None:
        found = generate(model, spelling, requests, batch_size=args.batch)
        written.update((index, completion) for index, (completion,) in found)

    def single() -> None:
        """The same tasks, prompts healed too, and as many tokens for each as were written above."""
        for index in chosen:
            kept, _ = spelling.healed(encode(tokenizer, [requests[index].prompt])[0])
            n = len(written[index].token_ids)
            model.generate(torch.tensor([kept]), max_new_tokens=n, min_new_tokens=n, do_sample=False)

    seconds, cpu = timed(batched)
    alone, alone_cpu = timed(single)
    rates, costs = [], []
    ways = {"batched": (range(len(requests)), seconds, cpu), "single ": (chosen, alone, alone_cpu)}
    for name, (indices, wall, used) in ways.items():
        tokens = sum(len(written[index].token_ids) for index in indices)
        rates.append(tokens / wall)
        costs.append(used / tokens)
        print(f"{name}  {len(indices):4} tasks  {rates[-1]:6.1f} tokens/s  ({wall:.1f} s, {used:.1f} s of processor)")
    print(f"batched is {rates[0] / rates[1]:.1f} times as fast, with {costs[0] / costs[1]:.0%} of the processor's time")


def train(args: argparse.Namespace) -> None:
    """Training steps on a finished run's artifacts, against the time that their products of matrices alone would take.

    The floor is counted, not measured step by step: 4 FLOP a weight of the body and token (forward, and back to what
    goes in), 2 a weight of the head three times, at the rate that a product of the layers' own shapes reaches here,
    which is measured between the steps. So other work on the machine slows both down alike.
    """
    objective, cuts = of_run(args)
    student, model = objective.student, objective.student.model
    batches = Steps(cuts, schedule(cuts.lengths, args.batch, args.steps + 1, 0), chunk=args.chunk)
    optimizer = torch.optim.AdamW([parameter for parameter in student.parameters() if parameter.requires_grad], lr=1e-6)
    head = student.lm_head.weight.numel()
    body = sum(parameter.numel() for parameter in student.body.parameters()) - student.embedding.weight.numel()
    config = model.config.get_text_config()
    spent, floor, rates = 0.0, 0.0, list[float]()
    new = old = 0
    for number in range(args.steps + 1):
        (batch,) = batches[number]

        def step(batch: Batch = batch) -> None:
            objective(batch)[0].backward()
            optimizer.step()
            optimizer.zero_grad()

        _, cpu = timed(step)
        left = torch.randn(batch.new_ids.numel(), config.hidden_size)
        right = torch.randn(config.hidden_size, config.intermediate_size)
        _, product = timed(lambda left=left, right=right: [left @ right for _ in range(100)])
        rate = 100 * 2 * left.numel() * right.shape[1] / product
        if number == 0:
            forget_peak(torch.device("cpu"))
            continue  # the first one warms up
        spent += cpu
        rates.append(rate)
        read = sum(len(cuts.states.ids[index]) for index in batches.order[number])
        floor += (batch.n_tokens * (4 * body + 2 * 2 * head) + read * 2 * head) / rate
        new, old = new + batch.n_tokens, old + read
    print(f"{args.steps} steps of {args.loss}, LoRA rank {args.lora}, {new / args.steps:.0f} new tokens each")
    print(f"{new / spent:.0f} new and {old / spent:.0f} old tokens a processor second; products reach "
          f"{sum(rates) / len(rates) / 1e9:.0f} GFLOP/s a thread")  # fmt: skip
    print(
        f"{spent / floor:.2f} times the floor; at most {peak_memory(torch.device('cpu')) / 1e9:.2f} GB in this process"
    )


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
    batches = Steps(cuts, order, chunk=args.chunk, online=True, budget=args.pass_tokens)
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
    batches = Steps(cuts, order, chunk=args.chunk, share=Share(rank, world))
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


def everything(args: argparse.Namespace) -> None:
    """All of the others, each in a process of its own, in some minutes on two cores: for docs/performance.md."""
    model, run = str(folders_of(args)["model"]), ["--run", args.folder]
    for command in (
        ["tokens", "--tokenizer", model, "--megabytes", "50", "--merges", "4096"],
        ["train", *run, "--loss", "kl"],
        ["train", *run, "--loss", "kl,ce"],
        ["train", *run, "--loss", "kl", "--lora", "16"],
        ["memory", *run, "--steps", "3"],
        ["memory", *run, "--steps", "3", "--tokens", "1e5", "--pass_tokens", "160"],
        ["memory", *run, "--steps", "3", "--tokens", "1e5", "--again"],
        ["processes", *run, "--steps", "6"],
        ["generation", "--model", model],
    ):
        print("\n$ python scripts/bench.py", *command, flush=True)
        subprocess.run([sys.executable, __file__, *command], check=True)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("tokens", help=tokens.__doc__)
    command.set_defaults(run=tokens)
    command.add_argument("--tokenizer", required=True, help="folder or hub id of a tokenizer")
    command.add_argument("--megabytes", type=float, default=5)
    command.add_argument("--merges", type=int, default=512)
    command.add_argument("--boundary", default="identifier")
    command.add_argument("--workers", type=int, default=0, help="processes and threads; 0 for one a core")
    command.add_argument("--plain", action="store_true", help="also time a plain Python loop on the same text")
    command = commands.add_parser("generation", help=generation.__doc__)
    command.set_defaults(run=generation)
    command.add_argument("--model", required=True, help="folder or hub id of a model with its tokenizer")
    command.add_argument("--tasks", type=int, default=164)
    command.add_argument("--batch", type=int, default=64)
    command.add_argument("--single", type=int, default=12, help="tasks that the loop writes too")
    command = commands.add_parser("all", help=(everything.__doc__ or "").split(":", maxsplit=1)[0])
    command.set_defaults(run=everything)
    command.add_argument("--run", dest="folder", required=True, help="folder of a run that has trained")
    for run, batch in ((train, 2), (processes, 4), (memory, 16)):
        command = commands.add_parser(run.__name__, help=(run.__doc__ or "").split("\n", maxsplit=1)[0])
        command.set_defaults(run=run)
        command.add_argument("--run", dest="folder", required=True, help="folder of a run that has trained")
        command.add_argument("--loss", default="kl,ce", help="losses of kldistill.losses, each with weight 1")
        command.add_argument("--lora", type=int, default=0, help="rank of an adapter of the body; 0 for none")
        command.add_argument("--steps", type=int, default=8)
        command.add_argument("--batch", type=int, default=batch)
        command.add_argument("--chunk", type=int, default=128)
        command.add_argument("--again", action="store_true", help="run layers again (gradient_checkpointing)")
    command.add_argument("--tokens", type=float, default=1e6, help="of the text")
    command.add_argument("--bytes", type=int, default=165, help="of a snippet")
    command.add_argument("--pass_tokens", type=int)
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main(sys.argv[1:])
