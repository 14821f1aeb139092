"""The stages teacher, distill and evaluate on a tiny model that has learnt a little of its text."""

import gc
import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from kldistill.evaluation.config import EvaluateConfig, ScoringConfig
from kldistill.evaluation.score import evaluate_original, evaluate_student
from kldistill.losses import ce, kl
from kldistill.losses.alignment import Alignment
from kldistill.losses.facts import loss
from kldistill.losses.weighted import Term
from kldistill.model.load import load_original
from kldistill.rows.rows import Rows
from kldistill.rows.student import Student
from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.errors import TrainingError
from kldistill.runtime.job import Job
from kldistill.tokens.artifact import load_extended_tokenizer, read_new_tokens
from kldistill.tokens.encoding import encode
from kldistill.tokens.pieces import PieceTable
from kldistill.training import adapters, distill, solve, states, teacher
from kldistill.training import compiled as compiled_layers
from kldistill.training.batches import Batch, Steps
from kldistill.training.config import DistillConfig, LoraConfig, SolveConfig, TeacherConfig
from kldistill.training.cuts import TwoCuts
from kldistill.training.load import load_student
from kldistill.training.loss_config import LossConfig, LossTerm
from kldistill.training.objective import Objective, unit_of
from kldistill.training.sampled import sampling
from kldistill.training.scoring import score_student
from kldistill.training.solve import Part
from kldistill.training.sums import summarise
from tests.helpers.artifacts import MakeModel, MakeTokens
from tests.helpers.setting import CPU, make_inputs


@dataclass
class Inputs:
    """Artifacts of one model, and how to add what distillation makes of them."""

    folders: dict[str, Path]
    root: Path

    def distilled(
        self,
        name: str,
        log: Callable[..., None] | None = None,
        runtime: Mapping[str, Any] = MappingProxyType({}),
        **settings: Any,
    ) -> Path:
        out = self.root / name
        out.mkdir(exist_ok=True)
        how = RuntimeConfig(device="cpu", checkpoint_every=3, **runtime)
        job = Job(how, log=log or (lambda metrics, step: None))
        distill.build(configured(**settings), self.folders, out, job)
        return out


def configured(**settings: Any) -> DistillConfig:
    names = settings.pop("terms", ["kl"])
    own = {"masked": True} if settings.pop("masked", False) else {}
    loss = LossConfig(
        "some",
        terms={name: LossTerm({"_target_": f"kldistill.losses.{name}", **own}) for name in names},
    )
    return DistillConfig(
        **{
            "steps": 8,
            "batch_size": 3,
            "snippet_bytes": 300,
            "validate_every": 100,
            "lr": 0.02,
            "lr_unit": "one",
            **settings,
        },
        loss=loss,
    )


@pytest.fixture(scope="module")
def inputs(tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("distill_")
    source = tiny_model(tied=False)
    return Inputs(make_inputs(source, fake_tokens(source), root, tied=False), root)


def test_the_teacher_stage_reports_what_it_drew(inputs: Inputs) -> None:
    figures = json.loads((inputs.folders["teacher"] / "summary.json").read_text())
    for split in ("train", "validation"):
        records = [json.loads(line) for line in (inputs.folders["teacher"] / f"{split}.jsonl").open()]
        assert figures[f"teacher/{split}/snippets"] == len(records)
        assert figures[f"teacher/{split}/tokens"] == sum(len(record["ids"]) for record in records)
        assert figures[f"teacher/{split}/bytes"] == sum(len(record["text"].encode()) for record in records)
    assert figures["teacher/train/snippets"] == 12


def test_the_teacher_stage_covers_the_new_tokens(inputs: Inputs, tmp_path: Path) -> None:
    """With as many snippets the covering ones show the new tokens better than those in an order by hash."""
    new = {token.id for token in read_new_tokens(inputs.folders["tokens"])}
    tokenizer = load_extended_tokenizer(inputs.folders["tokens"])
    seen = {}
    for draw in ("hash", "cover"):
        out = tmp_path / draw
        out.mkdir()
        cfg = TeacherConfig(300, 4, 2000, states="none", draw=draw)
        teacher.build(cfg, inputs.folders, out, Job(RuntimeConfig(device="cpu")))
        rows = encode(tokenizer, [snippet.text for snippet in states.read(out, "train").snippets])
        assert len(rows) == 4
        seen[draw] = Counter(token for row in rows for token in row if token in new)
    gain = {draw: sum(1 / time for n in counts.values() for time in range(1, n + 1)) for draw, counts in seen.items()}
    assert gain["cover"] > gain["hash"], "of 1 / times seen for each occurrence"
    assert len(seen["cover"]) >= len(seen["hash"])
    figures = json.loads((tmp_path / "cover" / "summary.json").read_text())
    assert figures["teacher/train/new_tokens"] == 24
    assert figures["teacher/train/new_tokens_seen"] == len(seen["cover"])
    assert figures["teacher/train/times_median"] == statistics.median(seen["cover"][token] for token in new)


def test_another_seed_trains_on_other_text(inputs: Inputs, tmp_path: Path) -> None:
    texts = []
    for seed in (0, 1):
        out = tmp_path / str(seed)
        out.mkdir()
        cfg = TeacherConfig(300, 4, 2000, states="none", seed=seed)
        teacher.build(cfg, inputs.folders, out, Job(RuntimeConfig(device="cpu")))
        texts.append({name: states.read(out, name).snippets for name in ("train", "validation")})
    assert texts[0]["train"] != texts[1]["train"]
    assert texts[0]["validation"] == texts[1]["validation"], "and is validated on the same"


@pytest.mark.parametrize("longer", [1.0, 4.0])
def test_a_rate_is_a_share_of_the_rows_entries(inputs: Inputs, tmp_path: Path, longer: float) -> None:
    """Adam's first step moves every entry that has a gradient by the rate."""
    model = load_original(inputs.folders["model"])
    old_VD = model.get_input_embeddings().weight
    old_VD.data *= longer
    size = (old_VD.norm(dim=1).median() / old_VD.shape[1] ** 0.5).item()
    assert unit_of(Student(model, Rows(old_VD[:3].clone()), len(old_VD)), "one") == 1.0
    assert unit_of(Student(model, Rows(old_VD[:3].clone()), len(old_VD)), "row") == pytest.approx(size)
    if longer == 1.0:
        first = Rows.load(inputs.folders["init"]).input
        settings = {"steps": 1, "warmup": 0.0, "schedule": "constant_with_warmup", "lr": 0.1}
        moved = Rows.load(inputs.distilled("unit", lr_unit="row", **settings)).input - first
        assert moved.abs().max().item() == pytest.approx(0.1 * size, rel=1e-2)


KL = "validation_kl_to_teacher"


@pytest.mark.parametrize("runtime", [{"loader_workers": 1}, {"pass_tokens": 150}], ids=str)
def test_how_it_runs_does_not_change_the_rows(inputs: Inputs, runtime: dict[str, int]) -> None:
    """Batches made in other processes are the same bit for bit; passes of a step add up to it."""
    usual = Rows.load(inputs.distilled("usual"))
    other = Rows.load(inputs.distilled(f"usual {next(iter(runtime))}", runtime=runtime))
    exactly = {"rtol": 0, "atol": 0} if "loader_workers" in runtime else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(other.input, usual.input, **exactly)
    torch.testing.assert_close(other.head, usual.head, **exactly)


@pytest.mark.parametrize(
    ("rank", "again", "backend"),
    [
        (4, False, "eager"),  # traced, and run as it was written: making code takes too long for the quick suite
        pytest.param(0, False, "inductor", marks=pytest.mark.slow),
        pytest.param(4, False, "inductor", marks=pytest.mark.slow),
        pytest.param(4, True, "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiled_layers_come_to_the_same(
    inputs: Inputs, rank: int, again: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And they are compiled: once, for training alone, whatever the length of the texts."""
    monkeypatch.setattr(compiled_layers, "BACKEND", backend)
    settings = {"lora": LoraConfig(r=rank), "batch_size": 2, "validate_every": 4, "gradient_checkpointing": again}
    as_usual = inputs.distilled(f"as written {rank} {again}", **settings)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    as_compiled = inputs.distilled(f"{backend} {rank} {again}", runtime={"compile": True}, **settings)
    usual, compiled = Rows.load(as_usual), Rows.load(as_compiled)
    torch.testing.assert_close(compiled.input, usual.input, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(compiled.head, usual.head, rtol=1e-3, atol=1e-4)
    if rank:
        learnt, before = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (as_compiled, as_usual))
        torch.testing.assert_close(learnt, before, rtol=1e-3, atol=1e-4)
        assert any(weight.any() for name, weight in learnt.items() if "lora_B" in name), "it has learnt"
    stats = torch._dynamo.utils.counters["stats"]
    assert 0 < stats["unique_graphs"] <= 3, stats


@pytest.mark.parametrize("rank", [0, 4])
def test_a_compiler_that_loses_a_gradient_is_found_out(
    inputs: Inputs, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of torch 2.11 did with an adapter: the loss stays the right one."""

    def losing(graph: torch.fx.GraphModule, examples: object) -> Callable[..., object]:
        return lambda *values: [value.detach() for value in graph(*values)]

    monkeypatch.setattr(compiled_layers, "BACKEND", losing)
    torch._dynamo.reset()
    with pytest.raises(TrainingError, match=r"^runtime\.compile=true: the gradient of .* is lost or another"):
        lora = LoraConfig(r=rank, target_modules=["q_proj"])
        inputs.distilled(f"losing {rank}", runtime={"compile": True}, lora=lora, batch_size=2)
    torch._dynamo.reset()


def test_each_kind_of_text_has_its_own_size(inputs: Inputs, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for split in ("test", "general", "general_code"):
        texts = (inputs.folders["corpus"] / "train.jsonl").read_text()
        (corpus / f"{split}.jsonl").write_text(texts)
    found = {}
    for own in (None, 3000):
        out = tmp_path / f"out {own}"
        out.mkdir()
        settings = ScoringConfig(domain_bytes=1000, general_bytes=2000, window_bytes=300, general_code_bytes=own)
        job = Job(RuntimeConfig(device="cpu"))
        evaluate_original(EvaluateConfig("original", settings), {**inputs.folders, "corpus": corpus}, out, job)
        figures = json.loads((out / "summary.json").read_text())
        found[own] = [figures[f"eval/original/{text}/bytes"] for text in ("domain", "general", "general_code")]
    assert found[None][1] == found[None][2]
    assert found[3000][:2] == found[None][:2], "the others stay as they are"
    for size, asked in zip(found[3000], (1000, 2000, 3000), strict=True):
        assert asked <= size < asked + 750, "the last window may reach over"


def test_less_text_than_is_to_be_scored_is_told_of(inputs: Inputs, tmp_path: Path) -> None:
    texts = (inputs.folders["corpus"] / "train.jsonl").read_text()
    for split in ("test", "general"):
        (tmp_path / f"{split}.jsonl").write_text(texts)
    said: list[str] = []
    folders, job = {**inputs.folders, "corpus": tmp_path}, Job(RuntimeConfig(device="cpu"), say=said.append)
    for name, settings in {
        "enough": ScoringConfig(domain_bytes=1000, general_bytes=1000, window_bytes=300),
        "short": ScoringConfig(domain_bytes=90_000, general_bytes=80_000, general_code_bytes=7, marginal_words=900),
    }.items():
        (out := tmp_path / name).mkdir()
        evaluate_original(EvaluateConfig("original", settings), folders, out, job)
        if name == "enough":
            assert not said
    n = int(json.loads((out / "summary.json").read_text())["eval/original/domain/bytes"])
    assert [text.split(" There")[0].split(". ")[0] for text in said] == [
        f"Warning: eval.domain_bytes=90000: there are only {n:,} bytes in the split test",
        f"Warning: eval.general_bytes=80000: there are only {n:,} bytes in the split general",
        "Warning: eval.general_code_bytes=7: there are only 0 bytes of it",
    ]


def test_what_rows_were_solved_on_is_let_go_of_before_the_training(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A megabyte a snippet, which the training has no use for."""
    held: list[int] = []

    def train(*arguments: Any, **settings: Any) -> dict[str, float]:
        gc.collect()
        held.append(sum(isinstance(found, Part) for found in gc.get_objects()))
        return {}

    made: list[int] = []
    monkeypatch.setattr(distill, "train", train)
    monkeypatch.setattr(solve, "Part", lambda *fields: made.append(1) or Part(*fields))
    inputs.distilled("let go", solve=SolveConfig(1, ridges=[0.01]))
    assert made and held == [0]


def test_masked_terms_train_the_masked_student(inputs: Inputs) -> None:
    """What they train falls, and validation tells of it; after them the student as it is leaves more to the mask."""
    ends = {}
    for masked in (False, True):
        log: list[dict[str, float]] = []
        inputs.distilled(f"masked {masked}", lambda found, step, log=log: log.append(found), steps=24, masked=masked)
        first, *_, ends[masked] = [found for found in log if KL in found]
        assert (f"{KL}_masked" in first) == masked
        if masked:
            assert ends[masked][f"{KL}_masked"] < 0.8 * first[f"{KL}_masked"]
            assert ends[masked][f"{KL}_masked"] < ends[masked][KL]
    assert ends[True][KL] != ends[False][KL]


def test_a_body_that_learns_with_the_rows(inputs: Inputs, tmp_path: Path) -> None:
    """An adapter changes the body and nothing of the embedding, brings the student nearer, and is read back with it."""
    ends, starts = {}, {}
    for name, lora in (("rows", LoraConfig(r=0)), ("lora", LoraConfig(r=4, alpha=8.0))):
        log: list[dict[str, float]] = []
        out = inputs.distilled(name, lambda found, step, log=log: log.append(found), steps=24, lora=lora, lora_lr=0.003)
        starts[name], *_, ends[name] = [found[KL] for found in log if KL in found]
        student = load_student(inputs.folders["model"], out)
        tokenizer, pieces = load_extended_tokenizer(inputs.folders["tokens"]), PieceTable.load(inputs.folders["tokens"])
        held_out = TwoCuts.read(inputs.folders["teacher"], "validation", tokenizer, pieces)
        read_back = summarise(
            score_student(student, held_out, teacher=True, batch_size=4, chunk=64, device=CPU, description="")
        )
        assert read_back["kl_to_teacher"] == pytest.approx(ends[name], rel=1e-4)
        old = load_original(inputs.folders["model"]).get_input_embeddings().weight
        assert torch.equal(student.embedding.weight, old), "old rows stay as they are"
        body = load_original(inputs.folders["model"]).model.state_dict()
        now = student.model.model.state_dict()
        changed = {key for key in body if not torch.equal(body[key], now[key])}
        assert bool(changed) == (lora.r > 0)
        assert ends[name] < 0.6 * starts[name]


def test_solved_output_rows_are_where_training_starts(inputs: Inputs) -> None:
    curves = {}
    for name, solved in (("from_init", SolveConfig()), ("solved", SolveConfig(6, ridges=[0.01]))):
        log: list[dict[str, float]] = []
        out = inputs.distilled(name, lambda found, step, log=log: log.append(found), steps=2, solve=solved)
        curves[name] = [found["kl"] for found in log if "kl" in found]
    assert curves["solved"][0] < curves["from_init"][0]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["distill/solve/validation_after"] < summary["distill/solve/validation_before"]
    assert Rows.load(out).made_by["output"].endswith("solved")


@pytest.mark.parametrize("tie", [True, False])
def test_a_tied_model_solves_one_row_or_two(
    tie: bool, tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    source = tiny_model(tied=True)
    inputs = Inputs(make_inputs(source, fake_tokens(source), tmp_path, tied=True), tmp_path)
    log: list[dict[str, float]] = []
    solved = SolveConfig(20, tie=tie, ridges=[1e-4])
    out = inputs.distilled("solved", lambda found, step: log.append(found), steps=1, solve=solved, lr=1e-9)
    rows, start = Rows.load(out), Rows.load(inputs.folders["init"])
    assert rows.tied is tie
    last = [token.pieces[-1] for token in read_new_tokens(inputs.folders["tokens"])]
    pieces_ND = load_original(inputs.folders["model"]).get_input_embeddings().weight[last]
    if tie:
        solved_ND = (rows.input - 0.3 * pieces_ND) / 0.7
        assert not torch.allclose(solved_ND, start.input, atol=0.01)
        assert rows.made_by["input"].endswith("solved")
    else:
        torch.testing.assert_close(rows.input, start.input, atol=1e-6, rtol=0)
        assert not torch.allclose(rows.head, start.input, atol=0.01)
    first = next(found["kl"] for found in log if "kl" in found)
    plain: list[dict[str, float]] = []
    inputs.distilled("plain", lambda found, step: plain.append(found), steps=1, lr=1e-9)
    assert first < next(found["kl"] for found in plain if "kl" in found)


def test_rows_that_share_a_map_learn_from_each_others_text(inputs: Inputs, tmp_path: Path) -> None:
    """Rows whose own rate is next to nothing move, those of tokens that do not occur in the text too."""
    moved: dict[float, Tensor] = {}
    for rate in (0.0, 0.2):
        out = inputs.distilled(f"shared {rate}", shared_lr=rate, terms=["ce"], lr=1e-9, steps=2, batch_size=1)
        moved[rate] = (Rows.load(out).input - Rows.load(inputs.folders["init"]).input).abs().amax(1)
    assert moved[0.0].max() < 1e-6
    assert moved[0.2].min() > 1e-4


def test_only_rows_that_occur_move(inputs: Inputs) -> None:
    start, lazy = (
        Rows.load(folder) for folder in (inputs.folders["init"], inputs.distilled("lazy", steps=1, lazy_rows=True))
    )
    eager = Rows.load(inputs.distilled("eager", steps=1))
    moved = {name: (rows.input != start.input).any(1) for name, rows in (("lazy", lazy), ("eager", eager))}
    out_moved = {name: (rows.head != start.head).any(1) for name, rows in (("lazy", lazy), ("eager", eager))}
    assert out_moved["eager"].all(), "the softmax asks every output row for something"
    assert torch.equal(out_moved["lazy"], moved["lazy"]) and 0 < moved["lazy"].sum() < 24


def test_kl_brings_the_student_closer_with_one_model_for_both_roles(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    load = load_original

    def once(*arguments: Any) -> Any:
        loaded.append(load(*arguments))
        return loaded[-1]

    monkeypatch.setattr(distill, "load_original", once)
    metrics: list[tuple[int, dict[str, float]]] = []
    out = inputs.distilled("kl", lambda found, step: metrics.append((step, found)), steps=24, lazy_rows=False)
    assert len(loaded) == 1
    before, after = metrics[0][1], metrics[-1][1]
    assert after["validation_kl_to_teacher"] < 0.6 * before["validation_kl_to_teacher"]
    losses = [found["loss"] for _, found in metrics if "loss" in found]
    assert len(losses) == 24
    assert [found["kl"] for _, found in metrics if "kl" in found] == pytest.approx(losses)

    # The body and the old rows are what they were, bit for bit, and the rows are not.
    stored = load(inputs.folders["model"]).state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in loaded[0].state_dict().items())
    assert all(parameter.grad is None for parameter in loaded[0].parameters())
    rows, first = Rows.load(out), Rows.load(inputs.folders["init"])
    assert rows.made_by == first.made_by
    assert rows.output is not None
    assert first.output is not None
    assert (rows.input != first.input).any(-1).sum() > 12
    assert (rows.output != first.output).any(-1).all()

    figures = json.loads((out / "summary.json").read_text())
    assert figures["distill/validation_kl_to_teacher"] == after["validation_kl_to_teacher"]
    assert {"distill/seconds", "distill/tokens_per_second", "distill/peak_memory_bytes"} <= set(figures)
    assert sorted(path.name for path in out.iterdir()) == ["rows.json", "rows.safetensors", "summary.json"]


@pytest.mark.parametrize(
    "more", [{}, {"shared_lr": 0.2, "solve": SolveConfig(3, ridges=[0.01]), "sampled_softmax": 40}]
)
def test_only_rows_get_a_gradient_and_an_optimiser_state(inputs: Inputs, more: dict[str, Any], tmp_path: Path) -> None:
    student = Student(load_original(inputs.folders["model"]), Rows.load(inputs.folders["init"]), 512)
    step = Objective(student, distill.terms_of(configured(terms=["kl", "ce"]).loss))
    wants = {name for name, parameter in step.named_parameters() if parameter.requires_grad}
    assert wants == {"student.rows.input", "student.rows.output"}

    def stop(found: dict[str, float], step: int) -> None:
        if step == 5 and "loss" in found:
            raise KeyboardInterrupt

    inputs = replace(inputs, root=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        inputs.distilled("stopped", stop, terms=["kl", "ce"], **more)
    with safe_open(inputs.root / "stopped" / "checkpoint.safetensors", "pt") as file:
        assert {name.split("/")[1] for name in file.keys()} == wants  # noqa: SIM118

    # And it goes on from there, to the same rows as without the stop.
    resumed = Rows.load(stopped := inputs.distilled("stopped", terms=["kl", "ce"], **more))
    whole = Rows.load(inputs.distilled("whole", terms=["kl", "ce"], **more))
    assert not (stopped / "start").exists()
    assert torch.equal(resumed.input, whole.input)
    assert resumed.output is not None
    assert whole.output is not None
    assert torch.equal(resumed.output, whole.output)


def test_a_sampled_softmax_learns_what_the_whole_one_does(inputs: Inputs) -> None:
    """Less exactly; and what is validated goes over the whole vocabulary, as the equal start shows."""
    found = {}
    for size in (None, 40, 600):
        log: list[dict[str, float]] = []
        inputs.distilled(
            f"sampled {size}",
            lambda metrics, step, log=log: log.append(metrics),
            steps=24,
            terms=["kl", "ce"],
            sampled_softmax=size,
        )
        found[size] = [line[KL] for line in log if KL in line], [line["kl"] for line in log if "kl" in line]
    assert found[600] == found[None], "there are only 512"
    (start, end), losses = found[None]
    (sampled_start, sampled_end), sampled_losses = found[40]
    assert sampled_start == start
    assert end < 0.7 * start
    assert sampled_end == pytest.approx(end, rel=0.1)
    assert sampled_end != end
    assert sampled_losses == pytest.approx(losses, rel=0.25)


def test_a_loss_that_does_not_say_that_a_part_will_do_gets_the_whole_vocabulary(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One of a user's own may name ids by itself."""
    widths, said = set(), list[str]()

    @loss()
    def own(student_logits: Tensor, teacher_logits: Tensor, alignment: Alignment) -> Tensor:
        widths.add((student_logits.shape[1], teacher_logits.shape[1]))
        return kl(student_logits, teacher_logits, alignment)

    monkeypatch.setattr(distill, "terms_of", lambda _: {"own": Term(own, 1.0), "ce": Term(ce, 0.1)})
    job = Job(RuntimeConfig(device="cpu"), say=said.append)
    distill.build(configured(steps=1, sampled_softmax=40), inputs.folders, tmp_path, job)
    assert [old for _, old in widths] == [512]
    assert "Softmaxes go over all tokens, as @loss(sampled=True) is not said of own." in said


@pytest.mark.parametrize("kind", ["self", "online"])
def test_the_teachers_likeliest_tokens_are_in_every_step(inputs: Inputs, kind: str) -> None:
    tokenizer, pieces = load_extended_tokenizer(inputs.folders["tokens"]), PieceTable.load(inputs.folders["tokens"])
    cuts = TwoCuts.read(inputs.folders["teacher"], "train", tokenizer, pieces)
    student = Student(load_original(inputs.folders["model"]), Rows.load(inputs.folders["init"]), 512)
    text = {token for ids in (*cuts.states.ids, *cuts.new_ids) for token in ids if token < 512}
    objective = Objective(student, {})
    online = partial(distill.online_states, objective, cuts, CPU)
    hidden = {"self": cuts.states.hidden, "online": online}[kind]
    mass_V = torch.stack([student.logits_old(hidden(index)).softmax(-1).sum(0) for index in range(len(cuts))]).sum(0)
    others = sorted(set(range(512)) - text, key=lambda token: -mass_V[token].item())
    size = (len(text) + 20) * 4 // 3 + 1
    found = sampling(student, cuts, hidden, size, 7)
    assert found is not None
    n = size * 3 // 4 - len(text)
    assert 15 < n < 25
    assert set(found.always_V.nonzero()[:, 0].tolist()) == text | set(others[:n])
    assert found.drawn == size - len(text) - n
    without = sampling(student, cuts, None, size, 7)
    assert without is not None
    assert set(without.always_V.nonzero()[:, 0].tolist()) == text
    assert without.drawn == size - len(text)
    assert sampling(student, cuts, hidden, 512, 7) is None


def test_tied_rows_serve_both_ends(inputs: Inputs) -> None:
    """Their gradient is the sum of what both ends ask for."""
    folder, batch = inputs.folders, first_batch(inputs)
    row = Rows.load(folder["init"]).input.detach()
    model = load_original(folder["model"])
    terms = distill.terms_of(configured(terms=["kl", "ce"]).loss)
    found: dict[bool, list[Tensor]] = {}
    for tied in (True, False):
        student = Student(model, Rows(row, None if tied else row), 512)
        loss, _ = Objective(student, terms)(batch)
        found[tied] = list(torch.autograd.grad(loss, list(student.rows.parameters())))
    torch.testing.assert_close(found[True][0], found[False][0] + found[False][1], rtol=1e-4, atol=1e-7)


def first_batch(inputs: Inputs) -> Batch:
    tokenizer, pieces = load_extended_tokenizer(inputs.folders["tokens"]), PieceTable.load(inputs.folders["tokens"])
    return Steps(TwoCuts.read(inputs.folders["teacher"], "train", tokenizer, pieces), [[0, 1, 2]], chunk=16)[0][0]


def test_without_a_teacher(inputs: Inputs) -> None:
    metrics: list[dict[str, float]] = []
    folders = {**inputs.folders, "teacher": inputs.root / "ids"}
    folders["teacher"].mkdir()
    job = Job(RuntimeConfig(device="cpu"))
    teacher.build(TeacherConfig(300, 12, 2000, states="none"), folders, folders["teacher"], job)
    assert not list(folders["teacher"].glob("*.npy"))
    Inputs(folders, inputs.root).distilled(
        "ce", lambda found, step: metrics.append(found), terms=["ce"], teacher="none", steps=3
    )
    assert "validation_kl_to_teacher" not in metrics[0]
    assert metrics[-1]["validation_bits_per_byte"] < metrics[0]["validation_bits_per_byte"]


@pytest.mark.parametrize("rank", [0, 4])
def test_a_teacher_that_runs_in_the_same_step_gives_the_same_losses(inputs: Inputs, tmp_path: Path, rank: int) -> None:
    """With the adapter too, which the teacher does not have, and with its dropout, which the teacher does not do; from
    rows that were solved at its states.
    """
    found: dict[str, list[float]] = {}
    for kind in ("self", "online"):
        folders = {**inputs.folders, "teacher": tmp_path / kind}
        folders["teacher"].mkdir()
        cfg = TeacherConfig(300, 12, 2000, states={"self": "all", "online": "held_out"}[kind])
        teacher.build(cfg, folders, folders["teacher"], Job(RuntimeConfig(device="cpu")))
        assert (folders["teacher"] / "train.npy").is_file() is (kind == "self")
        log: list[dict[str, float]] = []
        Inputs(folders, tmp_path).distilled(
            f"out_{kind}",
            lambda metrics, step, log=log: log.append(metrics),
            terms=["kl", "ce", "hidden"],
            teacher=kind,
            lora=LoraConfig(r=rank, alpha=8.0, dropout=0.2 if rank else 0.0),
            lora_lr=0.003,
            solve=SolveConfig(3, ridges=[0.01]),
        )
        found[kind] = [line[name] for line in log for name in ("loss", "kl", "hidden", KL) if name in line]
    assert len(found["self"]) > 20
    assert found["online"] == pytest.approx(found["self"], rel=1e-5)


def test_a_loss_that_needs_no_teacher_runs_none_in_its_steps(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {**inputs.folders, "teacher": tmp_path / "teacher"}
    folders["teacher"].mkdir()
    teacher.build(
        TeacherConfig(300, 12, 2000, states="held_out"), folders, folders["teacher"], Job(RuntimeConfig(device="cpu"))
    )
    runs: list[int] = []
    of_texts = Objective.teacher
    monkeypatch.setattr(Objective, "teacher", lambda self, ids: (runs.append(1), of_texts(self, ids))[1])
    for name in ("ce", "kl"):
        runs.clear()
        Inputs(folders, tmp_path).distilled(name, terms=[name], teacher="online", steps=3)
        assert bool(runs) is (name == "kl")


@pytest.mark.parametrize("rank", [0, 4])
def test_layers_that_run_again_give_the_same_loss_and_gradients_with_less_kept(inputs: Inputs, rank: int) -> None:
    """Bit for bit, also where the adapter drops out; and a frozen body, which never does, stays as it is."""
    found: dict[bool, list[Tensor]] = {}
    kept = dict.fromkeys((False, True), 0)
    for again in kept:
        torch.manual_seed(0)
        learns = adapters.Training("lora" if rank else "rows", LoraConfig(r=rank, dropout=0.2), checkpointing=again)
        student, _ = adapters.unfreeze(
            load_original(inputs.folders["model"]), Rows.load(inputs.folders["init"]), 512, learns
        )
        objective = Objective(student, distill.terms_of(configured(terms=["kl", "ce"]).loss))

        def keep(tensor: Tensor, again: bool = again) -> Tensor:
            kept[again] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _ = objective(first_batch(inputs))
        wanted = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        found[again] = [loss, *torch.autograd.grad(loss, wanted)]
    assert all(torch.equal(one, other) for one, other in zip(*found.values(), strict=True))
    assert kept[True] < 0.7 * kept[False], kept


def test_evaluation_of_original_and_extended_model(inputs: Inputs) -> None:
    job = Job(RuntimeConfig(device="cpu"))
    settings = ScoringConfig(domain_bytes=1500, general_bytes=1500, window_bytes=300, marginal_words=100, masked=True)
    folders = {**inputs.folders, "rows": inputs.folders["init"], "evaluate_original": inputs.root / "evaluate_original"}
    figures: dict[str, float] = {}
    for of, stage in (("original", evaluate_original), ("init", evaluate_student)):
        out = inputs.root / f"evaluate_{of}"
        out.mkdir()
        stage(EvaluateConfig(of, settings), folders, out, job)
        figures |= json.loads((out / "summary.json").read_text())
        records = [json.loads(line) for line in (out / "records.jsonl").open()]
        assert sum(r["n_bytes"] for r in records if r["text"] == "domain") == figures[f"eval/{of}/domain/bytes"]
    for kind in ("domain", "general"):
        assert figures[f"eval/init/{kind}/bytes"] == figures[f"eval/original/{kind}/bytes"]
        name = f"eval/init/{kind}/kl_to_teacher"
        few = figures[f"eval/init/{kind}/documents"] < 8
        assert figures[name] > 0
        assert (f"{name}/low" not in figures) if few else figures[f"{name}/low"] <= figures[name]
        assert figures[f"eval/init/{kind}/kl_per_byte"] * figures[f"eval/init/{kind}/bytes"] == pytest.approx(
            sum(r["kl"] for r in records if r["text"] == kind)
        )
        density = f"{kind}/tokens_per_1000_bytes"
        assert figures[f"eval/init/{density}"] < figures[f"eval/original/{density}"]
        assert f"eval/original/{kind}/kl_to_teacher" not in figures
        assert figures[f"eval/init/{kind}/new_token_share"] > 0
    for kind in ("domain", "general"):
        for name in ("bits_per_byte", "kl_to_teacher"):
            assert figures[f"eval/init/{kind}/{name}_masked"] < figures[f"eval/init/{kind}/{name}"]
        assert 0 < figures[f"eval/init/{kind}/refused_mass"] < 1
        assert f"eval/original/{kind}/bits_per_byte_masked" not in figures
    gap = {name for name in figures if name.endswith(("/marginal_gap", "/canonical_mass", "/old_mass"))}
    assert gap == {f"eval/init/domain/{name}" for name in ("marginal_gap", "canonical_mass", "old_mass")}
    assert figures["eval/init/domain/marginal_words"] >= 5
    assert figures["eval/init/domain/marginal_documents"] == figures["eval/init/domain/documents"], "20 texts are all"
