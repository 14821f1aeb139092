"""The token that begins every text, where a tokenizer's own one is in doubt: measured, not guessed.

A model predicts plain text best after the token that stood between the texts of its pre-training. A tokenizer names its
BOS (else its EOS), but chat models often name the marker of a turn there (``<|im_start|>``, ``<|im_end|>``), which they
know from fine-tuning alone. Only such tokenizers are in doubt: their chat template spells the token out.
"""

from pydoc_data.topics import topics

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

BEST = "best"  # what a maker returns as ``first_token`` to ask for this; no special token is spelt so
VERSION = 1  # enters the identity of models that ask for it
PASSAGES = 24
LENGTH = 64  # tokens of each passage; further on, the first one matters little


def asked(first_token: str | None) -> str:
    """What a maker says of its model's ``first_token``: the user's own, or that the best is to be found."""
    return BEST if first_token is None else first_token


def identity(first_token: object) -> dict[str, object]:
    """What enters a model's identity where the best is to be found: how that is done."""
    return {"first_token": VERSION} if first_token is None else {}


def own(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """What the tokenizer itself begins a text with: its BOS, else its EOS."""
    token = tokenizer.bos_token or tokenizer.eos_token
    return None if token is None else str(token)


def candidates(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The tokens that may begin a text, the tokenizer's own first; one alone where there is no doubt."""
    first, template = own(tokenizer), tokenizer.chat_template
    spelt = "\n".join(template.values()) if isinstance(template, dict) else template or ""
    if first is None or first not in spelt:
        return [first] if first is not None else []
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    roles = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    return list(dict.fromkeys([first, *(str(token) for token in roles if token in special)]))


@torch.no_grad()
def nats_after(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tokens: list[str]) -> dict[str, float]:
    """Mean nats a token of general prose (Python's own help texts) after each of the tokens."""
    texts = [topics[name].strip() for name in sorted(topics)]
    rows = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids[:LENGTH] for text in texts]
    whole = [row for row in rows if len(row) == LENGTH]
    text = torch.tensor(whole[:: max(len(whole) // PASSAGES, 1)][:PASSAGES], device=model.device)
    found = {}
    for token in tokens:
        index = tokenizer.convert_tokens_to_ids(token)
        assert isinstance(index, int), "one token, one id"
        first = torch.full((len(text), 1), index, device=model.device)
        logits = model(torch.cat([first, text], dim=1)).logits[:, :-1].float()
        found[token] = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), text.flatten()))
    return found


def best(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tokens: list[str]) -> tuple[str, str]:
    """The token after which general prose is predicted best, and a sentence that says so with the figures."""
    nats = nats_after(model, tokenizer, tokens)
    chosen = min(tokens, key=nats.__getitem__)
    figures = ", ".join(f"{value:.3f} after {token!r}" for token, value in nats.items())
    return chosen, (
        f"Every text begins with {chosen!r}: this tokenizer's own beginning, {tokens[0]!r}, is spelt in its chat "
        f"template, so general prose was measured ({figures}; nats a token). model.first_token overrides it."
    )
