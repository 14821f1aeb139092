"""Text from a plain causal language model of transformers, written in batches and fairly across tokenizers.

Budgets are in bytes, stop strings are seen wherever tokens end, and the prompt's end is healed.

Batches are made by hand rather than by ``model.generate``, which keeps finished rows in the batch until the last one
ends, pads all of them to the longest, and runs a beginning that many prompts share again for each. Here a finished
row's place is taken at once, passes are packed (``packed``) and check guesses (``lookup``). Where neither byte limit
nor healing has a say, the ids are those of ``model.generate``.
"""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from kldistill.evaluation.generation.attention import attending, fits
from kldistill.evaluation.generation.decoding import GREEDY, Decoding, Row, Rows
from kldistill.evaluation.generation.layout import by_columns
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.runtime.devices import suited
from kldistill.runtime.errors import EvaluationError
from kldistill.runtime.progress import Bar
from kldistill.tokens.encoding import encode, special_ids
from kldistill.tokens.windows import context_length

ALIKE = 32  # first tokens by which prompts are taken to share a beginning
MANY = 8  # prompts for which a shared beginning is run on its own


@dataclass(frozen=True)
class Request:
    """A text to go on from.

    Attributes:
        budget: bytes that may be written, at most.
        stop: the completion ends before the first of these that turns up in it.
        n: completions wanted.
        key: seeds the sampling; the same key gives the same completions in any company.
    """

    prompt: str
    budget: int
    stop: Sequence[str] = ()
    n: int = 1
    key: str = ""


@dataclass
class Completion:
    """What was written.

    Attributes:
        text: cut at a stop string, or at the last whole character within the budget.
        token_ids: as written, also those that spell the prompt's end again, or reach beyond the cut.
        healed: bytes of the prompt that were spelt again.
        n_tokens: tokens that hold at least a byte of what was written.
        n_bytes: size of ``text``.
        ended: ``stop``, ``budget`` or ``eos``.
        seconds: its share of the wall time of its batches.
    """

    text: str
    token_ids: list[int] = field(default_factory=list)
    healed: int = 0
    n_tokens: int = 0
    n_bytes: int = 0
    ended: str = ""
    seconds: float = 0.0


@dataclass
class Prompt:
    """A request's ids, and the bytes to be spelt first."""

    index: int
    ids: list[int]
    rest: bytes


def generate(
    model: PreTrainedModel,
    spelling: Spelling,
    requests: Sequence[Request],
    decoding: Decoding = GREEDY,
    *,
    batch_size: int,
    description: str = "Generating",
) -> Iterator[tuple[int, list[Completion]]]:
    """Complete every request.

    Args:
        model: in eval mode, with the vocabulary of ``spelling``'s tokenizer (padding rows are never chosen). On a CPU
            its weights are laid out by columns from then on, see ``layout``.
        batch_size: rows at a time; it changes the results by no more than rounding does.

    Yields:
        The index of a request and its completions, as they are finished.

    Raises:
        EvaluationError: a prompt is longer than the model's context.
    """
    prompts = prompts_of(spelling, requests, context_length(model.config))
    finished: dict[int, list[Row]] = {prompt.index: [] for prompt in prompts}
    cells = cells_of(model)
    with attending(by_columns(model)), Bar(description, total=len(requests), unit="tasks") as bar:
        for group in alike(prompts) if fits(model) else [prompts]:
            shared = common_prefix([prompt.ids for prompt in group]) if len(group) >= MANY and fits(model) else 0
            skipped = shared if shared >= ALIKE else 0
            rows = Rows(model, spelling, eos_of(model, spelling), decoding, group[0].ids[:skipped])
            queue = deque(sorted(group, key=lambda prompt: -len(prompt.ids)))
            while queue or rows.rows:
                while queue:
                    prompt, n = queue[0], requests[queue[0].index].n
                    width = max(rows.width, len(prompt.ids) - skipped)
                    if rows.rows and len(rows) + n > min(batch_size, cells // width):
                        break
                    queue.popleft()
                    rows.join(prompt.ids[skipped:], rows_of(requests[prompt.index], prompt, decoding.seed))
                for row in rows.step():
                    finished[row.request].append(row)
                    if len(finished[row.request]) == requests[row.request].n:
                        samples = sorted(finished.pop(row.request), key=lambda row: row.sample)
                        bar.advance(1)
                        yield row.request, [completion_of(row, prompts[row.request]) for row in samples]


def cells_of(model: PreTrainedModel) -> int:
    """How many cells (a row's column: keys and values of all layers) the cache may have on the model's device."""
    cells, config = suited(model.device).cells, model.config.get_text_config()
    if model.device.type != "cuda":
        return cells
    free, _ = torch.cuda.mem_get_info(model.device)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
    return max(1, min(cells, int(free / 3 / size)))


def prompts_of(spelling: Spelling, requests: Sequence[Request], limit: float) -> list[Prompt]:
    """The healed prompts of the requests, in order. Raises ``EvaluationError`` for one that ``limit`` tokens have no
    room for.
    """
    prompts = []
    for index, ids in enumerate(encode(spelling.tokenizer, [request.prompt for request in requests])):
        prompts.append(Prompt(index, *spelling.healed(ids)))
    for prompt in prompts:
        if len(prompt.ids) + 1 >= limit:
            raise EvaluationError(
                f"A prompt has {len(prompt.ids)} tokens, the model's context {limit}: lower the suite's prompt_bytes "
                "or shots, or leave the suite out."
            )
    return prompts


def alike(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Prompts in groups: those that share a beginning where they are many, and all others together.

    A few that leave the others early (a task that is itself one of the examples) must not shorten what the many share.
    """
    sizes: dict[tuple[int, ...], list[Prompt]] = {}
    for prompt in prompts:
        sizes.setdefault(tuple(prompt.ids[:ALIKE]), []).append(prompt)
    groups: list[list[Prompt]] = []
    others: list[Prompt] = []
    for group in sizes.values():
        middle = sorted(prompt.ids for prompt in group)[len(group) // 2]
        shared = [common_prefix([prompt.ids, middle]) for prompt in group]
        # The length that saves most.
        best = max(set(shared), key=lambda length: length * sum(other >= length for other in shared))
        many = [prompt for prompt, length in zip(group, shared, strict=True) if length >= best]
        if len(many) >= MANY:
            groups.append(many)
            others += [prompt for prompt, length in zip(group, shared, strict=True) if length < best]
        else:
            others += group
    return [*groups, others] if others else groups


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Length of what all rows begin with, short of the last token of any: each keeps one of its own."""
    first, last = min(map(list, rows)), max(map(list, rows))
    shortest = min(len(row) for row in rows) - 1
    return next((index for index in range(shortest) if first[index] != last[index]), shortest)


def eos_of(model: PreTrainedModel, spelling: Spelling) -> set[int]:
    """Ids that end a text: the generation config's, and every special token, none of which is text."""
    own = getattr(model.generation_config, "eos_token_id", None)
    ids = own if isinstance(own, list) else [own]
    return {index for index in ids if isinstance(index, int)} | special_ids(spelling.tokenizer)


def rows_of(request: Request, prompt: Prompt, seed: int) -> list[Row]:
    """The rows of a request, each with random numbers of its own."""
    stop = [text.encode() for text in request.stop]
    return [
        Row(
            prompt.index,
            sample,
            prompt.rest,
            request.budget,
            stop,
            random.Random(f"{seed}\0{request.key}\0{sample}"),
            prompt.ids,
        )
        for sample in range(request.n)
    ]


def completion_of(row: Row, prompt: Prompt) -> Completion:
    """A finished row as a completion; a character that the budget cut in two is left out."""
    text = row.text.decode(errors="ignore" if row.ended == "budget" else "replace")
    return Completion(
        text, row.ids, len(prompt.rest), row.n_tokens, len(text.encode()), ended=row.ended, seconds=row.seconds
    )
