"""Hundreds of words on the command line that nobody means: each is refused in one line, or is taken; none does harm."""

import random
from collections import Counter
from pathlib import Path

import pytest

from kldistill.pipeline import command
from kldistill.runtime.errors import KldistillError
from tests.helpers.runs import SMALL, write_corpus
from tests.pipeline.test_values import keys

WORDS = 320
VALUES = [
    *("", " ", "'", '"', "''", "[", "]", "{", "}", "[[]]", "{a:1}", "[,]", "(", "\\", "=", "==", ",", "a,b", "~", "#"),
    *("null", "nan", "-nan", "inf", "1e999", "-1", "0", "0x10", "1_000", "1e-320", "9" * 40, "true", "???", "!!int 3"),
    *("${", "${}", "${seed", "${seed}", "${oc.env:HOME}", "${oc.env:NO_SUCH_NAME}", "${now:%s}", "${loss}", "${..}"),
    *(
        "$(touch owned)",
        "`touch owned`",
        "; touch owned",
        "| touch owned",
        "../../../etc/passwd",
        "/dev/zero",
        "/",
        ".",
    ),
    *("\u202e", "\u0000", "a\nb", "\t", "\ud800", "ä", "𝟙", "\u200b", "x" * 3000, "%s%n", "{0}", "<b>", "__import__"),
    *(
        "range(3)",
        "choice(1,2)",
        "interval(0,1)",
        "glob(*)",
        "int(x)",
        "float(nan)",
        "sort(a)",
        "shuffle(range(10**9))",
    ),
]
WHOLE = [
    *("", "=", "+", "~", "++", "+=", "~=", "seed", "seed==1", "=1", "+seed=1", "~seed", "~seed=0", "++seed=1", "-x"),
    *("@", "loss@=kl", "loss@x=kl", "loss@loss.terms=kl", "a/b/c=d", "../model=tiny", "model=../../etc", "model=/tiny"),
    *("hydra.x=1", "+hydra.x=1", "hydra=none", "hydra.run.dir=", "hydra.callbacks=null", "hydra/launcher=none"),
    *("model=", "model=null", "~model", "model=[tiny,hf]", "experiment=", "experiment=none", "+experiment=smoke"),
    *("a" * 5000, "a=" * 500, "x.y.z=1", "seed.x=1", "stages.0=model", "stages[0]=model", "eval..suites=[]", ".seed=1"),
]


def words() -> list[str]:
    """The same words every time: each of ``WHOLE``, and keys with values drawn for them."""
    chance = random.Random(0)
    drawn = [f"{chance.choice(['', '', '', '+', '++'])}{chance.choice(keys())}={value}" for value in VALUES * 4]
    return [*WHOLE, *drawn][:WORDS]


@pytest.mark.slow
def test_no_word_of_the_command_line_does_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Hydra refuses by itself is left to it: then ``inspect`` is silent."""
    corpus = write_corpus(tmp_path / "corpus")
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert len(words()) == WORDS >= 300
    ends = Counter[str]()
    for word in words():
        try:
            command.inspect([*SMALL, f"corpus.path={corpus}", word])
            ends["taken, or left to Hydra"] += 1
        except KldistillError as error:
            assert "\n" not in str(error), word
            ends["refused"] += 1
        except SystemExit as error:  # argparse, for what begins with a dash
            assert error.code, word
            ends["no option"] += 1
        assert not list(folder.iterdir()), word
    print(dict(ends))
    assert ends["refused"] > 60, "the others are taken, or Hydra refuses them"
