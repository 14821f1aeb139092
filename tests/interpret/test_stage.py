"""The stage interpret: its text, its geometry, and all it writes, on tiny models of several families."""

import json
import math
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.torch import save_model
from transformers import AutoTokenizer

from kldistill import interpret
from kldistill.corpus.documents import read_documents
from kldistill.corpus.snippets import Snippet
from kldistill.interpret import geometry
from kldistill.interpret.config import InterpretConfig
from kldistill.interpret.contexts import Context, draw_rivals, draw_uses, read
from kldistill.model.load import load_original, load_original_config, load_original_tokenizer
from kldistill.runtime.errors import ArtifactError, ConfigError
from kldistill.runtime.job import Job
from kldistill.tokens.definition import token_bytes
from kldistill.tokens.pieces import PieceTable
from kldistill.training import adapters, states
from kldistill.training.cuts import TwoCuts
from kldistill.training.load import load_student
from kldistill.training.scoring import score_student
from kldistill.training.sums import summarise
from tests.helpers.artifacts import MakeModel, MakeTokens
from tests.helpers.interpreted import SMALL, run, write_corpus, write_rows
from tests.helpers.setting import whole

FAMILIES = ["llama", "gpt2", "gemma3", "qwen2"]
CPU = torch.device("cpu")


def inputs_of(model: Path, tokens: Path, folder: Path, tied: bool = False) -> dict[str, Path]:
    rows = {name: write_rows(model, folder / name, 24, seed, tied) for seed, name in enumerate(("init", "rows"))}
    return {"model": model, "tokens": tokens, "corpus": write_corpus(folder), **rows}


@pytest.fixture(scope="module")
def inputs(tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    model = tiny_model()
    return inputs_of(model, fake_tokens(model), tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def built(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict]:
    out = tmp_path_factory.mktemp("interpret")
    logged: dict[str, float] = {}
    return out, run(inputs, out, Job(log=lambda figures: logged.update(figures)), draw=True), logged


def contexts_of(inputs: dict[str, Path], seed: int = 0) -> list[Context]:
    tokenizers = load_original_tokenizer(inputs["model"]), AutoTokenizer.from_pretrained(inputs["tokens"] / "tokenizer")
    documents = read_documents(inputs["corpus"], "test")
    table, config = PieceTable.load(inputs["tokens"]), load_original_config(inputs["model"])
    return read(documents, *tokenizers, table, n=4, size=200, seed=seed, config=config)


def test_uses_are_the_new_tokens_with_their_pieces(inputs: dict[str, Path]) -> None:
    table = PieceTable.load(inputs["tokens"])
    contexts = contexts_of(inputs)
    assert len(contexts) == 4
    for index, context in enumerate(contexts):
        uses = context.uses(index)
        n_new = sum(token >= table.old_size for token in context.new_ids)
        assert n_new - 1 <= len(uses) <= n_new and uses  # the last token of a text has nothing after it
        for use in uses:
            span = context.old_ids[use.before.teacher_row + 1 : use.after.teacher_row + 1]
            assert tuple(span) == table.old_pieces(use.token)
            assert use.before.token == use.token and use.before.piece == span[0]
            assert use.after.student_row == use.before.student_row + 1
            assert use.after.piece == context.old_ids[use.after.teacher_row + 1]
    assert contexts_of(inputs)[0].text == contexts[0].text
    assert {c.text for c in contexts_of(inputs, seed=1)} != {c.text for c in contexts}
    every, some = draw_uses(contexts, 10_000, 0), draw_uses(contexts, 5, 0)
    assert len(some) == 5 and [use for use in every if use in some] == some
    assert draw_uses(contexts, 5, 1) != some


def test_no_model_is_fed_more_than_its_context(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the settings: the contexts, and the lines to complete with what they may grow to."""
    window = 160
    model = shutil.copytree(tiny_model(family="gpt2"), tmp_path / "model")
    short = load_original(model)
    short.transformer.wpe.weight.data = short.transformer.wpe.weight.data[:window].clone()
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "n_positions": window}))
    save_model(short, model / "model.safetensors", metadata={"format": "pt"})
    inputs = inputs_of(model, fake_tokens(model), tmp_path)
    fed: list[int] = []
    forward = torch.nn.Embedding.forward

    def watched(self: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        if self.num_embeddings == window:
            fed.append(int(ids.max()) + 1)
        return forward(self, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", watched)
    out = tmp_path / "out"
    report = run(inputs, out, context_bytes=2_000, n_contexts=6, attention_contexts=6, completions=3)
    assert report["left_out"] == {} and (out / "completions.jsonl").read_text()
    assert 100 < max(fed) <= window


def test_rivals_share_the_last_piece_but_not_the_token(inputs: dict[str, Path]) -> None:
    contexts = contexts_of(inputs)
    uses = draw_uses(contexts, 50, 0)
    rivals = draw_rivals(contexts, uses, 3, 0)
    assert rivals == sorted(rivals) and len(rivals) > 3
    assert max(np.bincount([rival.use for rival in rivals])) <= 3
    for rival in rivals:
        use = uses[rival.use]
        there, own = contexts[rival.context], contexts[use.context]
        assert there.old_ids[rival.teacher_row] == own.old_ids[use.after.teacher_row]
        ends = {u.after.teacher_row: u.token for u in there.uses(0)}
        assert ends.get(rival.teacher_row) != use.token


def test_what_the_stage_writes(built: tuple[Path, dict[str, Any], dict], inputs: dict[str, Path]) -> None:
    out, report, logged = built
    assert report["left_out"] == {}
    summary = json.loads((out / "summary.json").read_text())
    assert summary == logged and all(key.startswith("interpret/") for key in summary)
    assert summary["interpret/documents"] < 8 and not [key for key in summary if key.endswith("/low")], (
        "too few documents"
    )
    assert summary["interpret/uses"] == report["contexts"]["uses"]
    pictures = json.loads((out / "pictures.json").read_text())
    assert sorted(pictures) == sorted(path.name for path in out.glob("*.svg"))
    assert list(pictures)[:4] == ["calibration.svg", "lens.svg", "agreement.svg", "attention.svg"]
    for name, about in pictures.items():
        assert sorted(about) == ["alt", "caption", "title"] and all(len(text) > 10 for text in about.values())
        assert ElementTree.fromstring((out / name).read_text()).tag.endswith("svg")
        assert "#ffffff" in (out / name).read_text()
    lines = [json.loads(line) for line in (out / "new_tokens.jsonl").read_text().splitlines()]
    known = [json.loads(line) for line in (inputs["tokens"] / "new_tokens.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [record["id"] for record in known]
    assert sum(line["n"] for line in lines) == report["calibration"]["trained"]["new_tokens"]["observed"] > 5
    used = next(line for line in lines if line["n"])
    assert 0 < used["adoption"] < 1 and used["nll"] > 0 and "".join(used["pieces"]) == used["string"]
    layers = len(report["lens"]["after"]["trained"]["js"]["mean"])
    assert layers == len(report["agreement"]["init"]["centred"]["median"]) == 3
    shown = report["geometry"]["neighbours"]
    assert len(shown) == SMALL["neighbours"] and len(shown[0]["trained"]) == geometry.NEAREST


def test_the_kl_is_the_one_that_evaluate_reports(
    built: tuple[Path, dict[str, Any], dict], inputs: dict[str, Path], tmp_path: Path
) -> None:
    contexts, table = contexts_of(inputs), PieceTable.load(inputs["tokens"])
    student = load_student(inputs["model"], inputs["rows"])
    snippets = [Snippet(context.document, context.text) for context in contexts]
    ids = [context.old_ids for context in contexts]
    states.write(tmp_path, "some", student, snippets, whole(ids), batch_size=2, device=CPU, description="")
    scores = score_student(
        student, TwoCuts(states.read(tmp_path, "some"), whole([context.new_ids for context in contexts]), table),
        teacher=True, batch_size=2, chunk=64, device=CPU, description="",
    )  # fmt: skip
    figures, found = summarise(scores), built[1]["calibration"]["trained"]
    assert found["kl"]["total"] == pytest.approx(figures["kl_to_teacher"], rel=1e-3)
    lines = [json.loads(line) for line in (built[0] / "new_tokens.jsonl").read_text().splitlines()]
    n = sum(line["n"] for line in lines)
    assert sum(line["n"] * line.get("adoption", 0) for line in lines) / n == pytest.approx(figures["adoption"], 1e-3)
    assert sum(line["n"] * line.get("nll", 0) for line in lines) / n == pytest.approx(figures["new_token_nats"], 1e-3)


def test_the_same_again_to_the_byte(
    built: tuple[Path, dict[str, Any], dict], inputs: dict[str, Path], tmp_path: Path
) -> None:
    run(inputs, tmp_path, draw=True)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) > 8
    assert {name for name in names if (tmp_path / name).read_bytes() != (built[0] / name).read_bytes()} == set()


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_every_family(family: str, tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path) -> None:
    model = tiny_model(family)
    inputs = inputs_of(model, fake_tokens(model), tmp_path, tied=True)
    inputs["rows"] = inputs["init"]
    report = run(inputs, tmp_path / "out", n_contexts=2)
    assert report["left_out"] == {} and report["geometry"]["tied"]
    assert report["geometry"]["input"]["moved"]["mean"] == 0
    for part in ("agreement", "calibration", "attention"):
        assert report[part]["init"] == report[part]["trained"]


def test_a_finetuned_body_is_compared_with_the_original(
    built: tuple[Path, dict[str, Any], dict], inputs: dict[str, Path], tmp_path: Path
) -> None:
    rows = write_rows(inputs["model"], tmp_path / "rows", 24, seed=0)  # as init, but another body
    model = load_original(inputs["model"])
    with torch.no_grad():
        model.base_model.layers[0].mlp.down_proj.weight.mul_(1.5)
    save_model(model, str(rows / adapters.BODY))
    (rows / adapters.FACTS).write_text(json.dumps({"method": "full", "train_rows": True}))
    report = run({**inputs, "rows": rows}, tmp_path / "out")
    assert report["calibration"]["init"] == built[1]["calibration"]["init"]
    assert report["calibration"]["trained"]["kl"] != report["calibration"]["init"]["kl"]
    assert report["geometry"]["input"]["moved"]["mean"] == 0


def test_tokens_without_pieces_leave_out_what_needs_them(inputs: dict[str, Path], tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    records = [json.loads(line) for line in (inputs["tokens"] / "new_tokens.jsonl").read_text().splitlines()]
    (tokens / "new_tokens.jsonl").write_text("".join(json.dumps({**r, "pieces": []}) + "\n" for r in records))
    lengths = [len(data) for data in token_bytes(load_original_tokenizer(inputs["model"]))]
    lengths += [len(record["string"].encode()) for record in records]
    facts = json.loads((inputs["tokens"] / "vocabulary.json").read_text())
    (tokens / "vocabulary.json").write_text(json.dumps({**facts, "byte_lengths": lengths}))
    (tokens / "tokenizer").symlink_to(inputs["tokens"] / "tokenizer")
    said: list[str] = []
    report = run({**inputs, "tokens": tokens}, tmp_path / "out", Job(say=said.append))
    assert sorted(report["left_out"]) == ["calibration", "geometry", "lens"]
    assert all("AddedTokens" in reason for reason in report["left_out"].values())
    assert len(said) == 3 and "agreement" in report and "attention" in report
    assert "interpret/trained/agreement/cosine" in json.loads((tmp_path / "out" / "summary.json").read_text())


def test_without_attention_contexts_the_reason_is_given(inputs: dict[str, Path], tmp_path: Path) -> None:
    report = run(inputs, tmp_path, attention_contexts=0, n_contexts=1)
    assert report["left_out"] == {"attention": "interpret.attention_contexts=0"}
    assert not any("attention" in name for name in json.loads((tmp_path / "summary.json").read_text()))


def test_less_text_than_asked_for_is_told_of(inputs: dict[str, Path], tmp_path: Path) -> None:
    said: list[str] = []
    report = run(
        inputs,
        tmp_path / "few",
        Job(say=said.append),
        n_contexts=1,
        n_uses=2,
        completions=1,
        attention_contexts=1,
        neighbours=1,
    )
    assert not said, "as much as was asked for"
    report = run(inputs, tmp_path / "many", Job(say=said.append), n_contexts=500, n_uses=2, completions=400)
    n = report["contexts"]["n"]
    assert said[0].startswith(
        f"Warning: interpret.n_contexts=500: there are only {n} held-out snippets with new tokens."
    )
    assert said[1].startswith("Warning: interpret.completions=400: there are only ")
    said.clear()
    run(inputs, tmp_path / "uses", Job(say=said.append), n_contexts=1, n_uses=500, completions=0, attention_contexts=1)
    assert said[0].startswith("Warning: interpret.n_uses=500: there are only ") and len(said) == 1
    said.clear()
    asked: dict[str, Any] = {"completions": 0, "attention_contexts": 2, "neighbours": 400}
    run(inputs, tmp_path / "else", Job(say=said.append), n_contexts=1, n_uses=2, **asked)
    n = len((inputs["tokens"] / "new_tokens.jsonl").read_text().splitlines())
    assert said == [
        f"Warning: interpret.neighbours=400: there are only {n} new tokens. All are listed.",
        "Warning: interpret.attention_contexts=2: there are only 1 contexts that are cut at common boundaries "
        "throughout. More interpret.n_contexts give more.",
    ]


def test_text_without_new_tokens_is_told_of_and_no_more(inputs: dict[str, Path], tmp_path: Path) -> None:
    """A small project's test split may have none: that ends no run before its export."""
    (tmp_path / "test.jsonl").write_text(json.dumps({"id": "d", "text": "0 1 2 3 4 5 6 7\n"}) + "\n")
    out, said = tmp_path / "out", []
    out.mkdir()
    interpret.build(InterpretConfig(), {**inputs, "corpus": tmp_path}, out, Job(say=said.append))
    assert [path.name for path in out.iterdir()] == ["summary.json"]
    assert said == [
        "Warning: interpret: nothing is explained, as the test split has 0 uses of new tokens, and two are needed: the "
        "corpus has too little text."
    ]


def test_runs_side_by_side(built: tuple[Path, dict[str, Any], dict], tmp_path: Path) -> None:
    out, report, _ = built
    assert interpret.compare({"kl": out}, tmp_path) is None
    path = interpret.compare({"kl": out, "ce": out}, tmp_path)
    assert path is not None and path == tmp_path / "interpret_compare.svg" and "ce" in path.read_text()
    found = json.loads((tmp_path / "interpret_compare.json").read_text())
    assert list(found["figure"]) == [path.name] and found["table"]["kl"] == found["table"]["ce"]
    assert found["table"]["kl"]["KL elsewhere"] == report["calibration"]["trained"]["kl"]["mean_elsewhere"]
    with pytest.raises(ArtifactError, match=r"interpret\.json cannot be read"):
        interpret.compare({"kl": out, "ce": tmp_path / "none"}, tmp_path)


def test_ranges_are_checked() -> None:
    assert InterpretConfig().n_contexts > 0
    for key, value in (("n_contexts", 0), ("n_uses", 1), ("context_bytes", 8), ("attention_contexts", -1)):
        with pytest.raises(ConfigError, match=rf"interpret\.{key}="):
            InterpretConfig(**{key: value})


def test_anisotropy_of_known_directions() -> None:
    assert geometry.anisotropy(torch.eye(4)) == pytest.approx(0)
    assert geometry.anisotropy(torch.tensor([[1.0, 0], [2, 0], [5, 0]])) == pytest.approx(1)
    assert geometry.anisotropy(torch.tensor([[1.0, 0], [-3, 0]])) == pytest.approx(-1)
    assert math.isnan(geometry.anisotropy(torch.ones(1, 2)))


def test_geometry_of_known_rows() -> None:
    old = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 3]])
    rows = {"init": torch.tensor([[1.0, 0, 0], [0, 1, 1.5]]), "trained": torch.tensor([[1.0, 1, 0], [0, 1, 1.5]])}
    found = geometry.measure(old, rows, [[0, 1], [1, 2]], seed=0)
    assert found["old"]["norm"]["median"] == 2 and found["old"]["anisotropy"] == pytest.approx(0)
    assert found["init"]["cosine_to_first_piece"]["mean"] == pytest.approx((1 + 1 / math.sqrt(3.25)) / 2)
    assert found["init"]["cosine_to_last_piece"]["mean"] == pytest.approx((0 + 1.5 / math.sqrt(3.25)) / 2)
    assert found["init"]["cosine_to_mean_of_pieces"]["high"] <= 1 + 1e-6
    assert found["moved"]["mean"] == pytest.approx(0.5)  # the first row by its own length, the second not at all
    near = geometry.neighbours(old, rows["trained"], [1], lambda token: "abcde"[token])[0]
    assert [other["string"] for other in near] == ["c", "b", "d", "a"]
    assert near[0]["cosine"] == pytest.approx(1.5 / math.sqrt(3.25))


def test_principal_components_of_a_line() -> None:
    line = torch.arange(6.0)[:, None] * torch.tensor([3.0, 4, 0])
    points, share = geometry.principal(line, {"init": line, "trained": line}, seed=0)
    assert share == pytest.approx([1, 0], abs=1e-5)
    spread = np.ptp(points["trained"][:, 0])
    assert spread == pytest.approx(25, rel=1e-4) and np.ptp(points["old"][:, 1]) < 1e-4
