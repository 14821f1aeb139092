"""Total log-probabilities of several continuations of one prompt.

Each option is cut together with its prompt, as one text, and what all options of a prompt have in common in tokens is
run once. The sum over all tokens after that is what is compared: the rest of the text has the same probability for
every option, so this is the comparison of whole texts, and no option is punished for a token that spans the prompt's
end.

Shapes: Q questions, B options of all questions, T tokens, W vocabulary.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from kldistill.evaluation.generation.batching import common_prefix
from kldistill.evaluation.generation.cache import Cache
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.runtime.errors import EvaluationError
from kldistill.runtime.progress import Bar
from kldistill.tokens.encoding import encode
from kldistill.training.padding import pad, pad_in_front

POSITIONS = 1024  # whose vocabulary-sized logits exist at a time


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
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    cut = []
    for index, (prompt, options) in enumerate(questions):
        ids = encode(spelling.tokenizer, [prompt + option for option in options])
        if len(set(map(tuple, ids))) < len(ids):
            raise EvaluationError(f"Question {index}: two of its options are the same text, so none can be preferred.")
        if limit is not None and max(map(len, ids)) > limit:
            raise EvaluationError(
                f"Question {index}: an option with its prompt has {max(map(len, ids))} tokens, the model's context "
                f"{limit}. Leave the suite out."
            )
        cut.append((index, common_prefix(ids), ids))
    cut.sort(key=lambda item: -max(map(len, item[2])))
    with Bar(description, total=len(cut), unit="tasks") as bar:
        while cut:
            taken = [cut.pop(0)]
            while cut and sum(len(ids) for _, _, ids in taken) + len(cut[0][2]) <= batch_size:
                taken.append(cut.pop(0))
            sums = _score(model, len(spelling.table), taken)
            for index, _, ids in taken:
                yield index, [sums.pop(0) for _ in ids]
            bar.advance(len(taken))


@torch.no_grad()
def _score(model: PreTrainedModel, size: int, taken: Sequence[tuple[int, int, list[list[int]]]]) -> list[float]:
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
