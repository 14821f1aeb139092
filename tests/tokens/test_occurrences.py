"""New tokens stand in the text as often as was counted, or are found out."""

from kldistill.tokens.artifact import NewToken
from kldistill.tokens.occurrences import miscounted


def test_tokens_that_the_text_does_not_hold_as_often_as_counted() -> None:
    """What a miscounting of words would choose: ``zzz`` stands nowhere, yet the table says three times."""
    tokens = [NewToken(50, "qz", "qz", [4, 5], 2), NewToken(51, "zzz", "zzz", [1, 2], 3)]
    texts = ["qz qz"]
    assert miscounted(tokens, [2, 0], texts) == tokens[1:]
    assert miscounted(tokens[:1], [1], texts) == [], "looked up otherwise, but it is there"


def test_the_text_is_searched_only_for_tokens_that_no_longer_one_explains() -> None:
    """With 16,384 new tokens most are swallowed by longer ones: a search of the whole text for each takes minutes."""
    searched: list[str] = []

    class Text(str):
        def count(self, part: str, *_: object) -> int:
            searched.append(part)
            return super().count(part)

    ids = {"ab": [1, 2], "abc": [1, 2, 3], "abcd": [1, 2, 3, 4], "xy": [8, 9]}
    counts = {"ab": 5, "abc": 3, "abcd": 2, "xy": 4}
    tokens = [NewToken(50 + i, word, word, ids[word], counts[word]) for i, word in enumerate(ids)]
    texts = [Text("abcd abcd abc ab ab xy")]
    assert miscounted(tokens, [2, 1, 2, 1], texts) == tokens[3:]  # xy stands there once, not four times
    assert searched == ["xy"]
    assert miscounted(tokens[:3], [2, 0, 2], texts) == []  # one abc is cut otherwise: only for it the text is asked
    assert set(searched[1:]) == {"ab", "abc"}
