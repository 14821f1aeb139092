"""Measure what must be fast. Prints figures of this machine, and ratios between two ways within the same run.

python scripts/bench.py tokens --tokenizer FOLDER [--megabytes 5] [--merges 512] [--plain]
python scripts/bench.py generation --model FOLDER [--tasks 164] [--batch 64] [--single 12] [--device cuda]
python scripts/bench.py train --run FOLDER [--loss kl,ce] [--lora 16] [--steps 8] [--batch 2] [--device cuda]
python scripts/bench.py processes --run FOLDER [--loss kl,ce] [--lora 16] [--steps 8] [--batch 4]
python scripts/bench.py memory --run FOLDER [--loss kl,ce] [--lora 16] [--steps 8] [--batch 16] [--again]
python scripts/bench.py all --run FOLDER
"""

import argparse
import json
import resource
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from bench_training import folders_of, memory, processes, python_sources, timed, train
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from kldistill.evaluation.generation.batching import Completion, Request, generate
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.evaluation.suites.humaneval import HumanEval
from kldistill.evaluation.suites.task import Sources
from kldistill.model.load import old_size
from kldistill.tokens.boundaries import widen
from kldistill.tokens.definition import Definition, definition
from kldistill.tokens.encoding import encode
from kldistill.tokens.extension import entries_of
from kldistill.tokens.merges import Rules, choose
from kldistill.tokens.stage import use_cores
from kldistill.tokens.words import count_words


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
    model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype).to(args.device).eval()
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
            model.generate(
                torch.tensor([kept], device=args.device), max_new_tokens=n, min_new_tokens=n, do_sample=False
            )

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


def everything(args: argparse.Namespace) -> None:
    """All of the others, each in a process of its own, in some minutes on two cores: for docs/performance.md."""
    model, run = str(folders_of(args)["model"]), ["--run", args.folder]
    for command in (
        ["tokens", "--tokenizer", model, "--megabytes", "50", "--merges", "4096"],
        ["train", *run, "--loss", "kl"],
        ["train", *run, "--loss", "kl,ce"],
        ["train", *run, "--loss", "kl", "--lora", "16"],
        ["memory", *run, "--steps", "3"],
        ["memory", *run, "--steps", "3", "--tokens", "1e5"],
        ["memory", *run, "--steps", "3", "--tokens", "1e5", "--pass_tokens", "100000"],
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
    command.add_argument("--device", default="cpu", help="where to write: cpu, cuda")
    command.add_argument("--dtype", default="float32", help="the model's: float32, bfloat16")
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
        command.add_argument("--chunk", type=int, help="runtime.chunk")
        if run is train:
            command.add_argument("--device", default="cpu", help="where to train: cpu, cuda")
            command.add_argument("--sampled", type=int, help="distill.sampled_softmax")
            command.add_argument("--compile", action="store_true", help="runtime.compile")
            command.add_argument("--precision", choices=("no", "bf16"), default="no", help="distill.precision")
        command.add_argument("--again", action="store_true", help="run layers again (gradient_checkpointing)")
    command.add_argument("--tokens", type=float, default=1e6, help="of the text")
    command.add_argument("--bytes", type=int, default=165, help="of a snippet")
    command.add_argument("--pass_tokens", type=int, help="runtime.pass_tokens")
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main(sys.argv[1:])
