"""What a model takes at once, and that no stage feeds it more."""

import json
from pathlib import Path

from kldistill.model.load import load_original_config, load_original_tokenizer
from kldistill.runtime.job import Job
from kldistill.tokens.encoding import encode
from kldistill.tokens.windows import context_length
from kldistill.training import teacher
from kldistill.training.config import TeacherConfig
from tests.helpers.artifacts import MakeModel

LONG = "".join(f"({number})" for number in range(2_000))  # a line of 10,890 bytes, and about as many tokens


def test_the_context_is_the_configurations(tiny_model: MakeModel) -> None:
    assert context_length(load_original_config(tiny_model(family="gpt2"))) == 2048


def test_a_line_longer_than_the_context_is_no_fault(tiny_model: MakeModel, tmp_path: Path) -> None:
    """With learnt positions the teacher failed; with rotary ones it went on beyond what it was made for."""
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"id": name, "text": LONG + "\nx = 1\n"}) + "\n")
    for family in ("gpt2", "llama"):
        model, out = tiny_model(family=family), tmp_path / family
        out.mkdir()
        cfg = TeacherConfig(snippet_bytes=6_000, n_snippets=10, validation_bytes=20_000, states="all")
        teacher.build(cfg, {"model": model, "corpus": tmp_path}, out, Job())
        tokenizer = load_original_tokenizer(model)
        texts = [json.loads(line)["text"] for line in (out / "train.jsonl").read_text().splitlines()]
        assert sorted("".join(texts)) == sorted(LONG + "\nx = 1\n"), "nothing is lost"
        assert max(map(len, encode(tokenizer, texts))) <= 2048 < sum(map(len, encode(tokenizer, texts)))
