"""What a row goes on with, looked up in its own text, and how far such guesses are trusted."""

import pytest

from kldistill.evaluation.generation.lookup import LONGEST, MOST, Trust, find


@pytest.mark.parametrize(
    ("text", "n", "found", "guess"),
    [
        ("", 4, 0, ""),
        ("ab", 4, 0, ""),
        ("abcb", 4, 0, ""),  # one token alone is no reason for a guess
        ("abXcdef-ab", 4, 2, "Xcde"),
        ("abX abY ab", 3, 3, "Y a"),  # the last time, and the longest run: a blank stood before it too
        ("zabX yabY zab", 1, 3, "X"),  # a longer run goes before a later one
        ("xyxyx", 5, 3, "yxyxy"),  # what repeats itself goes on to do so
        ("aaaa", 6, 3, "aaaaaa"),
        ("0123456789-0123456789", 3, LONGEST, "-01"),
    ],
)
def test_find(text: str, n: int, found: int, guess: str) -> None:
    assert find(text, n) == (found, guess)


def test_ids_beyond_sixteen_bits_and_halves_of_characters_are_found() -> None:
    ids = [0xD800, 262_143, 5, 0xDFFF, 0xD800, 262_143]
    assert find("".join(map(chr, ids)), 2) == (2, "\x05\udfff")


def test_a_guess_is_as_long_as_it_is_worth() -> None:
    trust = Trust(idle=45)
    assert trust.length(8, 1) > trust.length(2, 1) >= 1, "longer matches are trusted more"
    assert trust.length(8, 1) > Trust(idle=2).length(8, 1), "and all the less, the more a token costs"
    assert trust.length(8, 4) >= trust.length(8, 64) >= trust.length(8, 4096) == 0, "and less in a pass of many tokens"
    for _ in range(40):
        trust.learn(3, 4, 0)
        trust.learn(5, 12, 12)
    assert trust.length(3, 4) == 0 and trust.length(5, 64) == MOST
    trust.learn(3, 4, 400)
    assert trust.length(3, 4) > 0, "and gains trust again"


def test_the_chance_of_a_token_is_that_of_all_before_it_too() -> None:
    """With half of all guessed tokens right, the third is right in an eighth of all cases."""
    trust = Trust(idle=7)
    trust.right[4], trust.wrong[4] = 1000.0, 1000.0
    assert [trust.length(4, tokens) for tokens in (8, 6, 2, 1)] == [0, 1, 2, 2]
