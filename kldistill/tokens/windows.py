"""How much of a text a model takes at once."""

from collections.abc import Iterable

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from kldistill.corpus.snippets import Snippet, fit
from kldistill.tokens.encoding import encode_snippets


def context_length(config: PretrainedConfig) -> float:
    """The most tokens that a model was made for, the first one included; infinite where its configuration names none.

    Models with learnt positions fail beyond it; those with rotary ones go on, and what they say there means nothing.
    """
    return getattr(config.get_text_config(), "max_position_embeddings", None) or float("inf")


def within_context(
    snippets: Iterable[Snippet], tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
) -> list[Snippet]:
    """The snippets, those halved (again and again) that have more tokens than the model takes.

    The extended tokenizer never has more tokens of a text than the original one, so what fits this one fits both.
    """
    return fit(snippets, lambda snippet: len(encode_snippets(tokenizer, [snippet])[0].ids), context_length(config))
