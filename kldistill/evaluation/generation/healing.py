"""Prompts whose end is spelt again, for any generation loop (token healing).

A prompt that ends with `` is`` cannot be followed by the rest of the token `` is not None:``: text that goes on so has
the longer token, and the model has never seen it cut otherwise. New tokens make that more frequent, those that reach
over words (``tokens.boundary=line``) most of all: a prompt may end inside one at any word. So the tokens at a prompt's
end that could be a part of a longer one are taken back, and the model writes them first, in whatever tokens it finds
most probable, and then goes on. The suites of this package do so for every model; this is the same for ``generate`` of
transformers.

Shape suffixes: B sequences, P tokens of a prompt, T tokens, W vocabulary.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from kldistill.evaluation.generation.spelling import Spelling
from kldistill.runtime.errors import EvaluationError
from kldistill.training.padding import pad_in_front


class HealedPrompts(LogitsProcessor):
    """Prompts without the tokens that could grow, and a processor that has them spelt again.

        healed = HealedPrompts(tokenizer, tokenizer(["if x is", "return self."])["input_ids"])
        model.generate(**healed.inputs, logits_processor=[healed])

    What ``generate`` returns spells each prompt and what follows it, after padding on the left: decode it with
    ``skip_special_tokens=True``. What is spelt again counts among ``max_new_tokens``.

    Args:
        tokenizer: the extended tokenizer (or any other).
        prompts: the ids of each prompt, without padding. The first one is always kept: best a special token, as this
            package has in front of every text.
        device: of the inputs.

    Attributes:
        inputs: ``input_ids`` and ``attention_mask`` for ``generate``, padded on the left.

    Raises:
        EvaluationError: there is no prompt, or one without a token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        prompts: Sequence[Sequence[int]],
        device: torch.device | str = "cpu",
    ) -> None:
        lists = isinstance(prompts, list | tuple) and all(isinstance(ids, list | tuple) for ids in prompts)
        if not lists or not prompts or not all(prompts):
            raise EvaluationError(
                "HealedPrompts: give the ids of each prompt as a list, without padding: "
                'tokenizer([TEXT, ...])["input_ids"]. There must be one, and every prompt needs a token.'
            )
        self.spelling = Spelling(tokenizer)
        healed = [self.spelling.healed(ids) for ids in prompts]
        self.ends = [end for _, end in healed]
        padding = next(id for id in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if isinstance(id, int))
        ids_BP, mask_BP = pad_in_front([ids for ids, _ in healed], torch.device(device), padding)
        self.length = ids_BP.shape[1]
        self.inputs: dict[str, Int[Tensor, "B P"]] = {"input_ids": ids_BP, "attention_mask": mask_BP}

    def __call__(  # type: ignore[override]
        self, input_ids: Int[Tensor, "B T"], scores: Float[Tensor, "B W"]
    ) -> Float[Tensor, "B W"]:
        """The scores, at minus infinity for tokens that do not spell what is left of a prompt; ``scores`` stays."""
        copies = len(input_ids) // len(self.ends)  # beams, or several answers to each prompt
        allowed_BW = torch.ones_like(scores, dtype=torch.bool)
        for row, written in enumerate(input_ids[:, self.length :].tolist()):
            known = [index for index in written if index < len(self.spelling.table)]  # the others pad the matrix
            if rest := self.ends[row // copies][len(self.spelling.spell(known)) :]:
                allowed_W = self.spelling.allowed(rest)[: scores.shape[1]]
                allowed_BW[row, len(allowed_W) :] = False  # rows of padding
                allowed_BW[row, : len(allowed_W)] = allowed_W
        return scores.masked_fill(~allowed_BW, -torch.inf)
