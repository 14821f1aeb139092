"""Stage ``generate``: one model of the run answers one suite of tasks, by writing, ranking or reading, and is judged.

Every answer is kept. A stage that was killed goes on where it stopped: the records that are there count, and the
missing tasks get the same answers as without a stop. Several processes share the missing tasks, each with a file of
records of its own, which the main one gathers.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from kldistill.evaluation import judge
from kldistill.evaluation.config import GenerateConfig, GenerateWithVllmConfig
from kldistill.evaluation.generation import batching, with_vllm
from kldistill.evaluation.generation.batching import Completion, Request
from kldistill.evaluation.generation.cuts import cut_of
from kldistill.evaluation.generation.decoding import Decoding
from kldistill.evaluation.generation.ranking import Likelihood, likelihoods, rank
from kldistill.evaluation.generation.spelling import Spelling, adoption
from kldistill.evaluation.metrics import MODELS
from kldistill.evaluation.outcomes import compared, summarise
from kldistill.evaluation.sandbox import Outcome, Sandbox, cores
from kldistill.evaluation.suites.task import TASKS, Task, read, stripped_lines
from kldistill.model.load import vocabulary_size
from kldistill.runtime.devices import accelerator, device_of, sizes
from kldistill.runtime.files import append, dump, read_lines, replace, write_summary
from kldistill.runtime.job import Job
from kldistill.runtime.processes import launched_here
from kldistill.runtime.shares import Share
from kldistill.tokens.pieces import PieceTable
from kldistill.training.load import load_model, load_tokenizer

RECORDS = "records.jsonl"
PART = "records.{}.jsonl"  # what one process writes, by its rank, until all of them are done
OF_LINES = ("text", "solution")  # kinds of tasks whose reference may stand in what the model has read


def build(cfg: GenerateConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Answer the suite's tasks with one model, judge the answers, and write all figures with their intervals.

    Args:
        inputs: ``model`` and ``tasks``; for an extended model also ``tokens``, ``rows`` and ``original`` (the same
            stage of the original model, to compare with) and ``teacher`` (the snippets it was trained on).
        out: gets ``records.jsonl`` (a line per task and sample, in the order of the tasks) and ``summary.json``.
    """
    tasks = read(inputs["tasks"] / TASKS)
    kind = tasks[0].kind
    snippets = trained_lines(inputs["teacher"]) if "teacher" in inputs and kind in OF_LINES else set()
    share = Share.of(accelerator(job.runtime, "no"), job.runtime)
    answers = measured if kind in ("choice", "solution") else written
    n_samples = cfg.n_samples if answers is written else 1
    if share.main:
        gather(out, n_samples)
    share.meet()
    done = {json.loads(line)["task"] for line in read_lines(out / RECORDS)}
    missing = [task for task in tasks if task.id not in done]
    if done:
        job.say(f"{cfg.suite}: {len(done)} of {len(tasks)} tasks were answered before")
    if mine := share.mine(missing):
        path = out / PART.format(share.rank)
        for record in answers(cfg, mine, inputs, job):
            append(path, dump(record))
    share.meet()
    if not share.main:
        return
    path, records = out / RECORDS, gather(out, n_samples)
    order = {task.id: place for place, task in enumerate(tasks)}
    if kind in OF_LINES:
        where = {task.id: seen_in(task, snippets) for task in tasks}
        for record in records:
            record["seen"] = where[record["task"]]
    records.sort(key=lambda record: (order[record["task"]], record["sample"]))
    replace(path, [dump(record) for record in records])
    figures = summarise(kind, records)
    if "original" in inputs:
        others = [json.loads(line) for line in read_lines(inputs["original"] / RECORDS)]
        figures |= compared(kind, records, others)
    summary = {f"eval/{cfg.model}/{cfg.suite}/{name}": value for name, value in figures.items()}
    write_summary(out, summary)
    job.log(summary)


def gather(out: Path, n_samples: int) -> list[dict[str, Any]]:
    """Put what every process has written into ``records.jsonl``, and give it: the records of the tasks that have all
    their samples. Of the others, which an interrupted run left, nothing is kept.
    """
    parts = sorted(out.glob(PART.format("*")))
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for file in (out / RECORDS, *parts):
        for record in map(json.loads, read_lines(file)):
            found[record["task"], record["sample"]] = record
    counts = Counter(task for task, _ in found)
    kept = [record for (task, _), record in found.items() if counts[task] == n_samples]
    replace(out / RECORDS, [dump(record) for record in kept])
    for part in parts:
        part.unlink()
    return kept


def trained_lines(teacher: Path) -> set[str]:
    """The lines of the snippets that the model was trained on, without white space at their ends."""
    texts = (json.loads(line)["text"] for line in read_lines(teacher / "train.jsonl"))
    return {line for text in texts for line in stripped_lines(text)}


def seen_in(task: Task, snippets: Collection[str]) -> list[str]:
    """Where the line to write stands already: ``task.seen``, and the ``snippets``."""
    line = task.prompt.rpartition("\n")[2] + task.reference
    return [*task.seen, "snippets"] if line.strip() in snippets else list(task.seen)


def head(task: Task, sample: int) -> dict[str, Any]:
    """The keys that every record starts with."""
    digest = hashlib.sha256(task.prompt.encode()).hexdigest()[:16]
    return {"task": task.id, "sample": sample, "group": task.group, "prompt_sha256": digest}


def model_of(inputs: Mapping[str, Path], job: Job, backend: str) -> PreTrainedModel:
    """The model, on the CPU for vLLM, which reads it from there."""
    return load_model(inputs["model"], inputs.get("rows"), "cpu" if backend == "vllm" else device_of(job.runtime))


def spelling_of(inputs: Mapping[str, Path]) -> Spelling:
    """What the model's tokens spell."""
    return Spelling(load_tokenizer(inputs["model"], inputs.get("tokens")))


def written(
    cfg: GenerateConfig, tasks: Sequence[Task], inputs: Mapping[str, Path], job: Job
) -> Iterator[dict[str, Any]]:
    """Records of tasks whose completion is a text: compared with the reference, or run as a program.

    Programs run beside the generation of what comes after them.
    """
    programs = tasks[0].kind == "program"
    workers = max(1, cores() // launched_here())
    with (
        Sandbox(cfg.limits, workers=workers, allow_unsandboxed=cfg.allow_unsandboxed) if programs else nullcontext()
    ) as sandbox:
        spelling, size = spelling_of(inputs), vocabulary_size(inputs["model"])
        requests = [Request(task.prompt, task.budget, task.stop, cfg.n_samples, key=task.id) for task in tasks]
        cut = cut_of(cfg.cut, PieceTable.load(inputs["tokens"])) if "tokens" in inputs else None
        running: list[tuple[dict[str, Any], Future[Outcome]]] = []
        generate: Callable[..., Iterator[tuple[int, list[Completion]]]] = batching.generate
        if isinstance(cfg, GenerateWithVllmConfig):
            generate = partial(with_vllm.generate, engine_args=cfg.vllm.chosen())
        for index, completions in generate(
            model_of(inputs, job, cfg.backend),
            spelling,
            requests,
            Decoding(cfg.temperature, cfg.top_p, cfg.seed, cut),
            batch_size=sizes(job.runtime).generation_batch,
            description=f"{MODELS[cfg.model].capitalize()} model on {cfg.suite}",
        ):
            task = tasks[index]
            for sample, completion in enumerate(completions):
                record = head(task, sample) | facts(completion)
                used, spelt = adoption(
                    spelling, task.prompt, completion.text, completion.token_ids, completion.healed, size
                )
                record |= {"new_used": used, "new_spelt": spelt}
                if sandbox is None:
                    exact, similarity = judge.judge_text(task, completion.text)
                    yield record | {"exact_match": exact, "edit_similarity": similarity}
                else:
                    running.append((record, sandbox.submit(judge.program_of(task, completion.text, completion.ended))))
            while running and running[0][1].done():
                yield judged(*running.pop(0))
        while running:
            yield judged(*running.pop(0))


def facts(completion: Completion) -> dict[str, Any]:
    """The completion itself and what it cost."""
    return {
        "completion": completion.text,
        "tokens": completion.n_tokens,
        "bytes": completion.n_bytes,
        "ended": completion.ended,
        "seconds": round(completion.seconds, 4),
    }


def judged(record: dict[str, Any], future: "Future[Outcome]") -> dict[str, Any]:
    """The record with the sandbox's verdict; waits for it."""
    outcome = future.result()
    return record | {
        "verdict": outcome.verdict.value,
        "detail": outcome.detail,
        "cpu_seconds": round(outcome.cpu_seconds, 4),
    }


def measured(
    cfg: GenerateConfig, tasks: Sequence[Task], inputs: Mapping[str, Path], job: Job
) -> Iterator[dict[str, Any]]:
    """Records of tasks for which nothing is written: of several continuations one is right, or the canonical one is
    read.
    """
    model, spelling = model_of(inputs, job, "transformers"), spelling_of(inputs)
    begun = time.perf_counter()
    how = {
        "batch_size": sizes(job.runtime).generation_batch,
        "description": f"{MODELS[cfg.model].capitalize()} model on {cfg.suite}",
    }
    found: Iterator[tuple[int, dict[str, Any]]]
    if tasks[0].kind == "choice":
        questions = [(task.prompt, task.options) for task in tasks]
        found = ((index, chosen(nats)) for index, nats in rank(model, spelling, questions, **how))
    else:
        texts = [(task.prompt, task.reference) for task in tasks]
        found = ((index, of_solution(cost)) for index, cost in likelihoods(model, spelling, texts, **how))
    for index, facts_of_task in found:
        seconds, begun = time.perf_counter() - begun, time.perf_counter()
        yield head(tasks[index], 0) | facts_of_task | {"seconds": round(seconds, 4)}


def chosen(nats: Sequence[float]) -> dict[str, Any]:
    """The log-probability of each option, and whether the right one has the highest."""
    return {"log_probabilities": [round(value, 4) for value in nats], "correct": judge.judge_choice(nats)}


def of_solution(cost: Likelihood) -> dict[str, Any]:
    """What a canonical completion costs: minus its log-probability, and its size."""
    return {"nats": round(-cost.nats, 4), "tokens": cost.tokens, "bytes": cost.bytes}
