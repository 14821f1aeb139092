"""Total log-probabilities of continuations: of several of one prompt, or of the one that is right.

Each option is cut together with its prompt, as one text, and what all options of a prompt have in common in tokens is
run once. The sum over all tokens after that is what is compared: the rest of the text has the same probability for
every option, so this is the comparison of whole texts, and no option is punished for a token that spans the prompt's
end.

Shapes: Q questions, B options of all questions, T tokens, W vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from kldistill.evaluation.generation.batching import common_prefix
from kldistill.evaluation.generation.cache import Cache
from kldistill.evaluation.generation.layout import by_columns
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.runtime.errors import EvaluationError
from kldistill.runtime.progress import Bar
from kldistill.tokens.encoding import encode
from kldistill.tokens.windows import context_length
from kldistill.training.padding import pad, pad_in_front

POSITIONS = 1024  # whose vocabulary-sized logits exist at a time
# Texts times the square of the longest one's tokens, at most, unless one alone is more: attention to a mask holds a
# score for each pair of tokens and each head, 2.4 GB of them for nine heads in float32.
PAIRS = 2**26


def rank(
    model: PreTrainedModel,
    spelling: Spelling,
    questions: Sequence[tuple[str, Sequence[str]]],
    *,
    batch_size: int,
    description: str = "Ranking",
) -> Iterator[tuple[int, list[float]]]:
    """Log-probabilities of the options of each question (a prompt and its options).

    Args:
        batch_size: options at a time.

    Yields:
        The index of a question, and for each option the nats of all its tokens after those that the options of the
        question share. Only their differences mean something.

    Raises:
        EvaluationError: two options of a question are the same, or a text is longer than the model's context.
    """
    cut = []
    for index, (prompt, options) in enumerate(questions):
        ids = encode(spelling.tokenizer, [prompt + option for option in options])
        if len(set(map(tuple, ids))) < len(ids):
            raise EvaluationError(f"Question {index}: two of its options are the same text, so none can be preferred.")
        cut.append(_Cut(index, common_prefix(ids), ids))
    for each, nats in _scored(model, len(spelling.table), cut, batch_size, description):
        yield each.index, nats


class Likelihood(NamedTuple):
    """What one text costs: its log-probability in nats, and the tokens and bytes that it is of."""

    nats: float
    tokens: int
    bytes: int


def likelihoods(
    model: PreTrainedModel,
    spelling: Spelling,
    texts: Sequence[tuple[str, str]],
    *,
    batch_size: int,
    description: str = "Scoring",
) -> Iterator[tuple[int, Likelihood]]:
    """The log-probability of each continuation after its prompt, both cut as one text.

    It is of all tokens after the prompt without white space at its end, which may belong to a token of the
    continuation: so it is of the same bytes for every tokenizer in which no token reaches from before that white space
    into it.

    Args:
        texts: pairs of a prompt and its continuation.
        batch_size: texts at a time.

    Raises:
        EvaluationError: a text is longer than the model's context.
    """
    cut = []
    for index, (prompt, continuation) in enumerate(texts):
        before, whole = encode(spelling.tokenizer, [prompt.rstrip(), prompt + continuation])
        # With an id more that nothing goes on with, all of the prompt's own may be shared.
        cut.append(_Cut(index, common_prefix([[*before, -1], whole]), [whole]))
    for each, (nats,) in _scored(model, len(spelling.table), cut, batch_size, description):
        rest = each.ids[0][each.shared :]
        yield each.index, Likelihood(nats, len(rest), len(spelling.spell(rest)))


class _Cut(NamedTuple):
    """Texts that begin alike: how many tokens they share, and the ids of each."""

    index: int
    shared: int
    ids: list[list[int]]


def _scored(
    model: PreTrainedModel, size: int, cut: list[_Cut], batch_size: int, description: str
) -> Iterator[tuple[_Cut, list[float]]]:
    """The log-probabilities of every text's tokens after those that are shared, the longest first."""
    limit = context_length(model.config)
    for each in cut:
        if max(map(len, each.ids)) > limit:
            raise EvaluationError(
                f"Question {each.index}: a text with its prompt has {max(map(len, each.ids))} tokens, the model's "
                f"context {limit}. Leave the suite out."
            )
    by_columns(model)
    waiting = sorted(cut, key=lambda each: -max(map(len, each.ids)))
    with Bar(description, total=len(waiting), unit="tasks") as bar:
        while waiting:
            taken = [waiting.pop(0)]
            most = min(batch_size, PAIRS // max(map(len, taken[0].ids)) ** 2)
            while waiting and sum(len(each.ids) for each in taken) + len(waiting[0].ids) <= most:
                taken.append(waiting.pop(0))
            sums = _score(model, size, taken)
            for each in taken:
                yield each, [sums.pop(0) for _ in each.ids]
            bar.advance(len(taken))


@torch.no_grad()
def _score(model: PreTrainedModel, size: int, taken: Sequence[_Cut]) -> list[float]:
    """Sums for all options of some questions, in order."""
    device = model.device
    common_QT, mask_QT = pad_in_front([ids[0][:shared] for _, shared, ids in taken], device)
    position_QT = (mask_QT.cumsum(1) - 1).clamp(min=0)
    cache = Cache()
    options = {"past_key_values": cache, "use_cache": True}
    output = model(common_QT, attention_mask=mask_QT, position_ids=position_QT, logits_to_keep=1, **options)
    first_QW = output.logits[:, -1]
    owner_B = torch.tensor([question for question, (_, _, ids) in enumerate(taken) for _ in ids], device=device)
    cache.select_rows(owner_B)
    rests = [row[shared:] for _, shared, ids in taken for row in ids]
    ids_BT, rest_mask_BT = pad(rests, device)
    begin_B = position_QT[:, -1][owner_B] + 1
    position_BT = begin_B[:, None] + torch.arange(ids_BT.shape[1], device=device)
    mask_BS = torch.cat([mask_QT[owner_B], rest_mask_BT], 1)
    nats_B = _nats(first_QW[owner_B, None, :size], ids_BT[:, :1]).squeeze(1)
    # Piece by piece: the logits of all columns at once would fill the memory.
    width = max(1, POSITIONS // len(rests))
    for start in range(0, ids_BT.shape[1] - 1, width):
        end = min(start + width, ids_BT.shape[1] - 1)
        logits_BTW = model(
            ids_BT[:, start:end],
            attention_mask=mask_BS[:, : mask_QT.shape[1] + end],
            position_ids=position_BT[:, start:end],
            **options,
        ).logits[..., :size]
        nats_BT = _nats(logits_BTW, ids_BT[:, start + 1 : end + 1]).masked_fill(
            rest_mask_BT[:, start + 1 : end + 1] == 0, 0
        )
        nats_B = nats_B + nats_BT.sum(1)
    return nats_B.double().tolist()


def _nats(logits: Float[Tensor, "B T W"], ids: Tensor) -> Float[Tensor, "B T"]:
    """Log-probabilities of ``ids``."""
    return logits.float().log_softmax(-1).gather(2, ids[..., None]).squeeze(2)
