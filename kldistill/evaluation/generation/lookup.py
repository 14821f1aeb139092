"""Guesses of what a row goes on with, looked up in its own text (prompt lookup: Saxena, 2023).

Where the last tokens stand in the prompt or the answer already, what followed them there is a guess, and one pass
checks all of its tokens: those that the row would have chosen anyway are its next ones. So what is written stays the
same; only passes are saved. How long a guess may be depends on how often guesses like it were right, and on how much
more work a pass with it is: one of few tokens takes nearly as long as one of some more.
"""

LONGEST = 8  # tokens that must stand there twice, at most
SHORTEST = 2
MOST = 12  # tokens of a guess


def find(text: str, n: int = MOST) -> tuple[int, str]:
    """What followed the longest run of last tokens the last time that it stood there.

    Args:
        text: a row's ids as characters: Python's search of strings is a fast one.
        n: tokens of the guess.

    Returns:
        How many last tokens were found, at most ``LONGEST``, and the guess; 0 and nothing where there is none. A text
        that has begun to repeat itself is guessed to go on so.
    """
    found, place = 0, -1
    for size in range(SHORTEST, LONGEST + 1):
        at = text.rfind(text[-size:], 0, len(text) - 1) if size < len(text) else -1
        if at < 0:
            break
        found, place = size, at + size
    if not found:
        return 0, ""
    followed = text[place:]
    return found, (followed * (n // len(followed) + 1))[:n]


class Trust:
    """How often guessed tokens were right, by how many tokens were found before them.

    Args:
        idle: so many tokens would take as long as what every pass costs, however few tokens it has.
    """

    def __init__(self, idle: int) -> None:
        self.idle = idle
        # As if a few had been seen: longer matches are better guesses.
        self.right = [0.5 * size for size in range(LONGEST + 1)]
        self.wrong = [2.0] * (LONGEST + 1)

    def length(self, found: int, tokens: int) -> int:
        """How many tokens are worth guessing in a pass of so many tokens: those whose chance to be right is above their
        share of what the pass costs.
        """
        share = tokens / (tokens + self.idle)
        rate = self.right[found] / (self.right[found] + self.wrong[found])
        chance, length = rate, 0
        while chance > share and length < MOST:
            chance *= rate
            length += 1
        return length

    def learn(self, found: int, guessed: int, right: int) -> None:
        """Take note of how many tokens of a guess, from its first on, were right."""
        self.right[found] += right
        self.wrong[found] += right < guessed
