"""A few held-out lines completed by the original and by the trained model: what one looks at first."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerFast

from kldistill.corpus.documents import Document
from kldistill.evaluation.generation.batching import Completion, Request, generate
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.runtime.devices import device_of, sizes
from kldistill.runtime.job import Job
from kldistill.runtime.shares import ALONE, Share
from kldistill.tokens.encoding import reader
from kldistill.training.load import load_model

PROMPT_BYTES = 400  # lines before the one that is completed, about
SHOWN_LINES = 4  # of the prompt
BUDGET = 120  # bytes that a completion may have
_LENGTHS = range(24, 100)  # of a line without its indentation, in characters


class Line(NamedTuple):
    """A line of a held-out document, up to its middle in ``prompt``, and the rest of it in ``reference``."""

    document: str
    prompt: str
    reference: str


def draw(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerFast,
    old_size: int,
    n: int,
    seed: int,
    size: int = PROMPT_BYTES,
) -> list[Line]:
    """Lines of different documents, each with a new token that begins in its second half.

    Args:
        tokenizer: the extended one.
        old_size: V, the number of old ids; ids from here on are new.
        n: lines at most.
        size: bytes of the lines before that are shown to the model, at most.
    """
    rng, text_reader = random.Random(seed), reader(tokenizer.backend_tokenizer.to_str())
    drawn: list[Line] = []
    for index in rng.sample(range(len(documents)), len(documents)):
        if len(drawn) == n:
            break
        document = documents[index]
        lines = document.text.splitlines()
        numbers = [number for number, line in enumerate(lines) if number and len(line.strip()) in _LENGTHS]
        for number in rng.sample(numbers, min(len(numbers), 40)):
            line = lines[number]
            indent = len(line) - len(line.lstrip())
            middle = indent + (len(line) - indent) // 2
            encoding = text_reader.encode(line, add_special_tokens=False)
            if any(
                index >= old_size and start >= middle
                for index, (start, _) in zip(encoding.ids, encoding.offsets, strict=True)
            ):
                before = "\n".join(lines[:number]).encode()[-size:].decode(errors="ignore")
                drawn.append(Line(document.id, f"{before.partition(chr(10))[2]}\n{line[:middle]}", line[middle:]))
                break
    return drawn


def write(
    path: Path,
    lines: Sequence[Line],
    inputs: Mapping[str, Path],
    tokenizers: Mapping[str, PreTrainedTokenizerFast],
    old_size: int,
    job: Job,
    share: Share = ALONE,
) -> None:
    """Complete every line greedily with both models, one after the other, and write one JSON object a line.

    All processes of ``share`` call this with the same lines, and complete some each; the main one writes.

    Args:
        path: gets ``document``, ``prompt`` (its last lines), ``reference``, and ``answers``: for every model its name,
            the ``tokens`` that it wrote (text, and whether it is new), and whether that is ``exact``ly the rest.
        inputs: ``model`` and ``rows``.
        tokenizers: the tokenizers of the models ``original`` and ``extended``.
    """

    def complete(part: range) -> list[list[dict[str, Any]]]:
        mine = [lines[number] for number in part]
        found: list[list[dict[str, Any]]] = [[] for _ in mine]
        requests = [Request(line.prompt, BUDGET, ("\n",)) for line in mine]
        for name, tokenizer in tokenizers.items():
            rows = None if name == "original" else inputs["rows"]
            model = load_model(inputs["model"], rows, device_of(job.runtime))
            spelling = Spelling(tokenizer)
            size = sizes(job.runtime).generation_batch
            for index, (made,) in generate(model, spelling, requests, batch_size=size, description=f"{name} model"):
                exact = made.text.rstrip() == mine[index].reference.rstrip()
                tokens = [token._asdict() for token in written(made, spelling, old_size)]
                found[index].append({"model": name, "tokens": tokens, "exact": exact})
        return found

    parts = share.parts(len(lines))
    by_line: dict[int, list[dict[str, Any]]] = {}
    for part, found in zip(parts, share.each(parts, complete), strict=True):
        by_line |= zip(part, found, strict=True)
    if not share.main:
        return
    answers = [by_line[number] for number in range(len(lines))]
    with path.open("w", encoding="utf-8") as file:
        for line, own in zip(lines, answers, strict=True):
            shown = "\n".join(line.prompt.splitlines()[-SHOWN_LINES:])
            record = {"document": line.document, "prompt": shown, "reference": line.reference, "answers": own}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    columns = ["document", "line", "in the text"]
    columns += [column for name in tokenizers for column in (name, f"{name} tokens")]
    job.table("samples", columns, [_sample(line, own) for line, own in zip(lines, answers, strict=True)])


def _sample(line: Line, answers: Sequence[Mapping[str, Any]]) -> list[object]:
    """A row of the table of samples: how the line begins, how it goes on, and what each model wrote in how many tokens.

    Tokens are counted as they were written, those of the extension in brackets.
    """
    row: list[object] = [line.document, line.prompt.splitlines()[-1].strip(), line.reference]
    for answer in answers:
        tokens = answer["tokens"]
        new = sum(token["new"] for token in tokens)
        row += ["".join(token["text"] for token in tokens), f"{len(tokens)} ({new})" if new else f"{len(tokens)}"]
    return row


class Token(NamedTuple):
    """A token as it was written: its text, and whether it is one of the extension."""

    text: str
    new: bool


def written(completion: Completion, spelling: Spelling, old_size: int) -> Iterator[Token]:
    """The tokens of a completion, without what spells the prompt's end again and what lies beyond its cut.

    Where a character is spread over several tokens, the last of them shows it.
    """
    skip, left, pending = completion.healed, completion.n_bytes, b""
    for index in completion.token_ids:
        spelt = spelling.table[index]
        own, skip = spelt[skip:], max(skip - len(spelt), 0)
        own, left = own[:left], left - len(own[:left])
        pending += own
        if not own:
            continue
        try:
            text, pending = pending.decode(), b""
        except UnicodeDecodeError:
            text = "·"
        yield Token(text, index >= old_size)
