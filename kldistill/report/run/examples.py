"""Examples for the page: held-out lines under both tokenizers, and generations of two models side by side.

Drawn by a fixed seed among those that qualify, never picked for their looks.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kldistill.evaluation.metrics import MODELS, parse
from kldistill.model.load import old_size
from kldistill.report.data import Run, lines
from kldistill.tokens.definition import token_bytes
from kldistill.tokens.encoding import text_ids
from kldistill.training.load import load_tokenizer

N_LINES = 6
N_ANSWERS = 4  # of each suite
_LINE_LENGTHS = range(40, 110)
_PROMPT_LINES = 15


class Token(NamedTuple):
    """A token as it stands in a line; ``new`` for one of the extension."""

    text: str
    new: bool


class Line(NamedTuple):
    """A line of a held-out document, cut twice."""

    document: str
    old: list[Token]
    new: list[Token]


class Answer(NamedTuple):
    """One model's answer: what it wrote, and how it was judged."""

    model: str
    text: str
    judgement: str


class Example(NamedTuple):
    """A task and the answers to it; ``prompt`` holds its last lines, empty where the task is no longer there."""

    suite: str
    task: str
    prompt: str
    reference: str
    answers: list[Answer]


def cut_lines(run: Run, seed: int = 0) -> list[Line]:
    """Lines of different test documents, each with at least one new token; empty where the artifacts are gone."""
    documents, tokens = lines(run.file("corpus", "test.jsonl")), run.file("tokens", "tokenizer")
    if not documents or tokens is None or run.file("model", "model.json") is None:
        return []
    old = load_tokenizer(run.artifacts["model"], None)
    new = load_tokenizer(run.artifacts["model"], run.artifacts["tokens"])
    table, size = token_bytes(new), old_size(old)
    rng = random.Random(seed)
    drawn = []
    for document in rng.sample(documents, len(documents)):
        texts = [line.strip() for line in document["text"].splitlines()]
        texts = [text for text in texts if len(text) in _LINE_LENGTHS]
        for text in rng.sample(texts, min(len(texts), 40)):
            line = Line(document["id"], *(parts_of(text_ids(cutter, [text])[0], table, size) for cutter in (old, new)))
            if any(token.new for token in line.new):
                drawn.append(line)
                break
        if len(drawn) == N_LINES:
            break
    return drawn


def parts_of(ids: Sequence[int], table: Sequence[bytes], size: int) -> list[Token]:
    """The text of every token. Where a character is spread over several, the last of them shows it, the others ``·``.

    Args:
        table: bytes of every id.
        size: V, the number of old ids; ids from here on are new.
    """
    tokens, pending = [], b""
    for index in ids:
        pending += table[index]
        try:
            text, pending = pending.decode(), b""
        except UnicodeDecodeError:
            text = "·"
        tokens.append(Token(text, index >= size))
    return tokens


def generations(run: Run, seed: int = 0) -> list[Example]:
    """Some tasks of every suite, with the first answer of the original and of the last model.

    Up to half of them are tasks on which the two were judged differently; these come first.
    """
    if run.last is None:
        return []
    records = _records(run)
    prompts = _tasks(run)
    examples = []
    for suite in dict.fromkeys(suite for _, suite in records):
        ours, theirs = records.get((run.last, suite), {}), records.get(("original", suite), {})
        common = [task for task in ours if task in theirs and "completion" in ours[task]]
        for task in _some(common, ours, theirs, random.Random(seed)):
            asked = prompts.get(suite, {}).get(task, {})
            answers = [
                Answer(MODELS[model], record["completion"], judgement(record))
                for model, record in (("original", theirs[task]), (run.last, ours[task]))
            ]
            prompt = "\n".join(asked.get("prompt", "").splitlines()[-_PROMPT_LINES:])
            examples.append(Example(suite, task, prompt, asked.get("reference", ""), answers))
    return examples


def _some(
    tasks: Sequence[str], ours: Mapping[str, Mapping], theirs: Mapping[str, Mapping], rng: random.Random
) -> list[str]:
    shuffled = rng.sample(list(tasks), len(tasks))
    differing = [task for task in shuffled if judgement(ours[task]) != judgement(theirs[task])][: N_ANSWERS // 2]
    rest = [task for task in shuffled if task not in differing]
    return [*differing, *rest[: N_ANSWERS - len(differing)]]


def judgement(record: Mapping[str, Any]) -> str:
    """How an answer was judged, in a few words."""
    if "verdict" in record:
        detail = record.get("detail") or ""
        verdict = str(record["verdict"]).replace("_", " ")
        return f"{verdict}: {detail}" if detail and verdict != "passed" else verdict
    if "exact_match" in record:
        if record["exact_match"]:
            return "exact match"
        return f"no match, edit similarity {record['edit_similarity']:.2f}"
    return "right" if record.get("correct") else "wrong"


def verdicts(run: Run) -> list[tuple[str, str, dict[str, int]]]:
    """(suite, model, {verdict: answers}) of every suite whose answers are programs."""
    names = [name for name in map(parse, run.metrics) if name and name.model and name.metric == "verdict"]
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for suite in dict.fromkeys(name.subject for name in names):
        for model in MODELS:
            for name in names:
                if (name.subject, name.model) == (suite, model):
                    counts.setdefault((suite, MODELS[model]), {})[name.rest] = int(run.metrics[str(name)])
    return [(suite, model, by_verdict) for (suite, model), by_verdict in counts.items()]


def _records(run: Run) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """First sample of every task's records, by (model, suite). An artifact's own metrics say whose it is."""
    records_of: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for _, folder, metrics in run.summaries():
        owners = {name[:2] for name in map(parse, metrics) if name and name.metric == "tasks"}
        if len(owners) == 1:
            records = lines(folder / "records.jsonl")
            records_of[owners.pop()] = {record["task"]: record for record in reversed(records)}
    return records_of


def _tasks(run: Run) -> dict[str, dict[str, dict[str, Any]]]:
    """The tasks of every suite by id."""
    tasks_of: dict[str, dict[str, dict[str, Any]]] = {}
    for _, folder, figures in run.summaries():
        suites = [key.removeprefix("tasks/") for key in figures if key.startswith("tasks/")]
        if len(suites) == 1:
            tasks_of[suites[0]] = {task["id"]: task for task in lines(folder / "tasks.jsonl")}
    return tasks_of
