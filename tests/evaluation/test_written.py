"""Text that the original model writes, as training and scoring use it."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from kldistill.corpus.documents import WRITTEN, read_documents
from kldistill.evaluation import written
from kldistill.evaluation.config import WriteConfig
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.model.load import load_original, load_original_tokenizer
from kldistill.pipeline import compose
from kldistill.pipeline.checks import check
from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.errors import ConfigError
from kldistill.runtime.job import Job
from kldistill.tokens.artifact import load_extended_tokenizer
from kldistill.tokens.encoding import encode
from kldistill.tokens.pieces import PieceTable
from kldistill.training import states
from kldistill.training.cuts import TwoCuts
from kldistill.training.states import scored_rows
from tests.helpers.artifacts import MakeModel
from tests.helpers.runs import config, run, write_corpus
from tests.helpers.setting import documents


@pytest.fixture(scope="module")
def inputs(tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("corpus")
    lines = [json.dumps(document._asdict()) + "\n" for document in documents(5)]
    (folder / "train.jsonl").write_text("".join(lines))
    return {"model": tiny_model(), "corpus": folder}


def write(inputs: dict[str, Path], out: Path, n: int, n_bytes: int = 40, seed: int = 0) -> dict[str, float]:
    out.mkdir()
    cfg = WriteConfig("key", "train", n, n_bytes, prompt_bytes=100, seed=seed)
    written.build(cfg, inputs, out, Job(RuntimeConfig(device="cpu")))
    return json.loads((out / "summary.json").read_text())


def test_each_text_goes_on_from_a_beginning_and_is_scored_without_it(inputs: dict[str, Path], tmp_path: Path) -> None:
    figures = write(inputs, tmp_path / "a", 60)
    found, corpus = read_documents(tmp_path / "a", WRITTEN), {one.id: one.text for one in documents(5)}
    assert len(found) == figures["written/train/texts"] > 50  # some may end at once
    n_bytes, prompts = 0, Counter[str]()
    for one in found:
        prompt, own = one.runs
        assert [part.scored for part in one.parts] == [False, True] and not any(part.special for part in one.parts)
        assert prompt in corpus[one.id] and prompt == prompt.rstrip()
        assert corpus[one.id].split(prompt)[1][:1] in ("", "\n"), "prompts end with a line"
        prompts[prompt] += 1
        n_bytes += len(own.encode())
    assert n_bytes == figures["written/train/bytes"]
    assert len(prompts) > 5 and max(prompts.values()) > 1, "more texts than beginnings"
    long = sum(len(one.runs[1].encode()) >= 38 for one in found)
    assert long > 0.5 * len(found), "what does not end by itself has the asked size, less half a character"


def test_texts_that_ended_at_once_are_told_of(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = written.generate

    def ending(*arguments, **settings):  # type: ignore[no-untyped-def]
        for index, completions in generate(*arguments, **settings):
            ended = [dataclasses.replace(one, token_ids=[], healed=0) for one in completions]
            yield index, completions if index else ended

    monkeypatch.setattr(written, "generate", ending)
    (tmp_path / "test.jsonl").write_text((inputs["corpus"] / "train.jsonl").read_text())
    said: list[str] = []
    cfg = WriteConfig("eval.written=6", "test", 6, 40, prompt_bytes=100)
    (tmp_path / "out").mkdir()
    written.build(
        cfg, {**inputs, "corpus": tmp_path}, tmp_path / "out", Job(RuntimeConfig(device="cpu"), say=said.append)
    )
    n = len(read_documents(tmp_path / "out", WRITTEN))
    assert n < 6
    (warning,) = said
    assert warning.startswith(f"Warning: eval.written=6: there are only {n} texts that the original model wrote. It ")


def test_the_same_seed_writes_the_same(inputs: dict[str, Path], tmp_path: Path) -> None:
    texts = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write(inputs, tmp_path / name, 8, seed=seed)
        texts[name] = [one.text for one in read_documents(tmp_path / name, WRITTEN)]
    assert texts["a"] == texts["b"] != texts["c"]


@torch.no_grad()
def test_it_draws_from_the_whole_distribution(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first token of many texts, as often as the model says: also the least likely half of the vocabulary."""
    tokenizer, model = load_original_tokenizer(inputs["model"]), load_original(inputs["model"]).eval()
    monkeypatch.setattr(Spelling, "healed", lambda self, ids: (list(ids), b""))
    first: list[int] = []
    generate = written.generate

    def watched(*arguments, **settings):  # type: ignore[no-untyped-def]
        for index, completions in generate(*arguments, **settings):
            first.extend(one.token_ids[0] if one.token_ids else -1 for one in completions)
            yield index, completions

    monkeypatch.setattr(written, "generate", watched)
    lines = [json.dumps(documents(1)[0]._replace(text="def f(x):\n")._asdict()) + "\n"]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    write({**inputs, "corpus": tmp_path}, tmp_path / "out", 1500, n_bytes=1)
    p = (
        model(torch.tensor(encode(tokenizer, ["def f(x):"])))
        .logits[0, -1, : len(Spelling(tokenizer).table)]
        .softmax(-1)
    )
    counts = torch.bincount(torch.tensor([index for index in first if index >= 0]), minlength=len(p)).double()
    order = p.argsort()
    for part in order.chunk(4):
        share, wanted = counts[part].sum().item() / 1500, p[part].sum().item()
        assert abs(share - wanted) < 4 * (wanted / 1500) ** 0.5 + 0.005


def test_a_run_that_trains_on_it_and_scores_it(tmp_path: Path) -> None:
    more = ["distill.self_written=0.5", "eval.written=6", "stages=[evaluate]", "loss=kl_ce", "distill.draw=hash"]
    record = run(write_corpus(tmp_path / "corpus"), tmp_path, *more)
    metrics, folder = record["metrics"], tmp_path / "runs" / "run"
    assert metrics["teacher/train/self_written"] == metrics["written/train/texts"] == 4
    text = states.read(folder / record["artifacts"]["teacher"], "train")
    assert len(text.snippets) == 8
    own = [(snippet, sizes) for snippet, sizes in zip(text.snippets, text.sizes, strict=True) if snippet.parts]
    assert len(own) == 4
    for snippet, sizes in own:
        rows = scored_rows(snippet, sizes)
        assert rows is not None and rows.tolist() == list(range(sizes[0], sum(sizes))), "the prompt is not trained on"
    for model in ("init", "distilled"):
        kl = metrics[f"eval/{model}/written/kl_to_teacher"]
        assert kl > 0 and 0 < metrics[f"eval/{model}/written/kl_per_byte"] < kl
    assert metrics["eval/original/written/bits_per_byte"] > 0
    assert metrics["eval/original/written/bytes"] == metrics["written/test/bytes"]
    # Plain is a text that the student reads without a new token: beginnings are not scored, but they are read.
    inputs = {name: folder / where for name, where in record["artifacts"].items()}
    tokenizer, pieces = load_extended_tokenizer(inputs["tokens"]), PieceTable.load(inputs["tokens"])
    names = [name for name in ("domain", "general", "written") if states.exists(inputs["evaluate_original"], name)]
    cuts = [TwoCuts.read(inputs["evaluate_original"], name, tokenizer, pieces) for name in names]
    plain = sum(max(ids) < pieces.old_size for of_text in cuts for ids in of_text.new_ids)
    lines = (inputs["evaluate_distilled"] / "records.jsonl").read_text().splitlines()
    assert len(names) == 3 and sum(json.loads(line)["text"] == "plain" for line in lines) == plain
    written_without = sum(json.loads(line)["text"] == "written" and not json.loads(line)["n_new"] for line in lines)
    assert written_without > sum(max(ids) < pieces.old_size for ids in cuts[2].new_ids), "the case is there"


@pytest.mark.parametrize("key", ["eval.written=5", "distill.self_written=0.5"])
def test_conversations_are_refused_at_once(key: str) -> None:
    cfg = compose.typed(config(["model=tiny", "corpus=chat", "corpus.path=json", key]))
    with pytest.raises(ConfigError, match="this corpus is of conversations"):
        check(cfg)


def test_shares_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^distill\.self_written=0\.5: .* must stay below 1"):
        compose.typed(config(["distill.general=0.5", "distill.self_written=0.5"]))
