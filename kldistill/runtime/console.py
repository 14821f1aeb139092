"""Text on a console and in a log: what a corpus, a list of terms or a model wrote holds signs that a terminal obeys."""


def spelt(text: str, keep: str = "") -> str:
    r"""Text whose control characters are spelt as a string of Python has them: ``\x1b``, ``\n``, ``\u202e``.

    Args:
        keep: characters that stay as they are, such as the line breaks of a traceback.
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() or sign in keep else repr(sign)[1:-1] for sign in text)
