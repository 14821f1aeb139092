"""Text to ids, as every stage encodes it."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from kldistill.runtime.errors import ModelError


def first_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The special token that starts every snippet, so that all its tokens are predicted: BOS, else EOS.

    Raises:
        ModelError: the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise ModelError("The tokenizer has neither a BOS nor an EOS token to start a text with: set one in its folder.")


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, after the first token (see ``first_token``); no other special tokens are added."""
    start = first_token(tokenizer)
    ids = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [[start, *row] for row in ids]  # type: ignore[union-attr]
