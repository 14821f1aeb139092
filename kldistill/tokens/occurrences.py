"""Whether new tokens stand in the text as often as was counted: a tokenizer that is misread makes some up."""

from collections import Counter
from collections.abc import Iterable, Sequence

from kldistill.tokens.artifact import NewToken


def miscounted(tokens: list[NewToken], uses: Sequence[int], texts: Iterable[str]) -> list[NewToken]:
    """New tokens whose string stands in the train text less often than their count says.

    Args:
        uses: how often the extended tokenizer uses each of them there. A token stands wherever a longer one is used
            that holds its pieces, too. Only where that is still less than the count is the text searched: words that
            are looked up whole may be cut otherwise than merges in their order do.
    """
    stands = Counter({tuple(token.pieces): used for token, used in zip(tokens, uses, strict=True)})
    seen = Counter(stands)
    for pieces, used in stands.items():
        if used:
            n = len(pieces)
            parts = (pieces[i:j] for i in range(n) for j in range(i + 2, n + 1) if j - i < n)
            seen.update({part: used for part in set(parts) if part in stands})
    suspects = [token for token in tokens if seen[tuple(token.pieces)] < token.count]
    found = Counter[str]()
    for text in texts if suspects else ():
        found.update({token.string: text.count(token.string) for token in suspects})
    return [token for token in suspects if found[token.string] < token.count]
