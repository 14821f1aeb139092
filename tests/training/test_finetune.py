"""Stage ``finetune`` on a tiny random model: what learns, what stays, and what is read back."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from kldistill.model.load import load_original, load_original_tokenizer
from kldistill.rows.rows import Rows
from kldistill.rows.student import Student, bare
from kldistill.runtime.config import RuntimeConfig
from kldistill.runtime.errors import ArtifactError, ConfigError
from kldistill.runtime.job import Job
from kldistill.tokens.encoding import encode
from kldistill.tokens.pieces import PieceTable
from kldistill.training import adapters, finetune, states, teacher
from kldistill.training.batches import Steps
from kldistill.training.config import DistillConfig, LoraConfig, TeacherConfig
from kldistill.training.cuts import TwoCuts
from kldistill.training.finetune_config import FinetuneConfig
from kldistill.training.load import load_model, load_student
from kldistill.training.loss_config import LossConfig, LossTerm
from kldistill.training.objective import Objective, terms_of
from kldistill.training.scoring import score_student
from kldistill.training.sums import summarise
from tests.helpers.artifacts import MakeModel, MakeTokens
from tests.helpers.setting import CPU, make_inputs

METHODS = ["lora", "full", "rows"]
Log = list[tuple[int, dict[str, float]]]


@dataclass
class Tuned:
    """One fine-tuned model: its inputs, its folder, and what it logged."""

    folders: dict[str, Path]
    out: Path
    log: Log

    @property
    def summary(self) -> dict[str, float]:
        return json.loads((self.out / "summary.json").read_text())

    def curve(self, name: str) -> list[float]:
        return [figures[name] for _, figures in self.log if name in figures]


def tune(folders: dict[str, Path], out: Path, method: str, **settings: Any) -> Tuned:
    """Fine-tune the random rows of ``init``, with settings that a tiny model needs."""
    log: Log = []
    out.mkdir(exist_ok=True)
    cfg = configured(method, **settings)
    job = Job(RuntimeConfig(device="cpu", checkpoint_every=3), log=lambda figures, step: log.append((step, figures)))
    finetune.build(cfg, {**folders, "rows": folders["init"]}, out, job)
    return Tuned(folders, out, log)


def configured(method: str, **settings: Any) -> FinetuneConfig:
    small: dict[str, Any] = {
        "steps": 12,
        "batch_size": 3,
        "snippet_bytes": 300,
        "lr": 0.01,
        "lr_unit": "one",
        "validate_every": 6,
    }
    small["loss"] = loss_of(**settings.pop("terms", {"ce": 1.0}))
    return FinetuneConfig(method, LoraConfig(r=4, alpha=8, **settings.pop("lora", {})), **{**small, **settings})


def loss_of(**weights: float) -> LossConfig:
    """A weighted sum of the package's losses."""
    terms = {name: LossTerm({"_target_": f"kldistill.losses.{name}"}, weight) for name, weight in weights.items()}
    return LossConfig("_".join(weights), terms=terms)


@pytest.fixture(scope="module")
def make(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[bool], dict[str, Path]]:
    """Inputs of a tied or an untied model, made once."""
    made: dict[bool, dict[str, Path]] = {}

    def of(tied: bool) -> dict[str, Path]:
        if tied not in made:
            source = tiny_model(tied=tied)
            made[tied] = make_inputs(
                source, fake_tokens(source), tmp_path_factory.mktemp("inputs_"), tied, learnt=False
            )
        return made[tied]

    return of


@pytest.fixture(scope="module")
def tuned(
    make: Callable[[bool], dict[str, Path]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, bool], Tuned]:
    """``tuned(method, tied)``: made once."""
    made: dict[tuple[str, bool], Tuned] = {}

    def of(method: str, tied: bool) -> Tuned:
        if (method, tied) not in made:
            made[method, tied] = tune(
                make(tied),
                tmp_path_factory.mktemp("tuned_"),
                method,
                lazy_rows=False,  # so few steps of a random model move the softmax more than they teach a token
                rows_lr=0.03,
                lr=0.03 if method == "rows" else 0.01,
            )
        return made[method, tied]

    return of


def some_ids(folders: dict[str, Path]) -> Tensor:
    """Ids of a text with new tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folders["tokens"] / "tokenizer")
    rows = encode(tokenizer, [snippet.text for snippet in states.read(folders["teacher"], "train").snippets])
    ids = torch.tensor([max(rows, key=lambda row: sum(token >= 512 for token in row))])[:, :150]
    assert (ids >= 512).sum() > 2
    return ids


@torch.no_grad()
def logits_of(student: Student, ids: Tensor) -> Tensor:
    return student.logits(student.hidden(ids))


each = pytest.mark.parametrize(("method", "tied"), [(method, tied) for method in METHODS for tied in (True, False)])


@each
def test_the_domain_gets_likelier(method: str, tied: bool, tuned: Callable[[str, bool], Tuned]) -> None:
    found = tuned(method, tied)
    bits = found.curve("validation_bits_per_byte")
    assert len(bits) == 3
    assert bits[-1] < {"full": 0.92, "lora": 0.985, "rows": 0.999}[method] * bits[0]
    assert len(found.curve("loss")) == 12
    assert found.curve("loss") == pytest.approx(found.curve("ce"))
    assert found.summary["finetune/validation_bits_per_byte"] == bits[-1]
    assert found.summary["finetune/validation_kl_to_teacher"] == found.curve("validation_kl_to_teacher")[-1]
    assert {"finetune/seconds", "finetune/tokens_per_second", "finetune/peak_memory_bytes"} <= set(found.summary)
    rows = 24 * 32 * (1 if tied else 2)
    body = {"rows": 0, "full": sum(p.numel() for p in load_original(found.folders["model"]).parameters())}
    # Each of the two layers: q and o 32 to 32, k and v 32 to 16, gate and up 32 to 64, down 64 to 32, at rank 4.
    body["lora"] = 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    assert found.summary["finetune/trainable_parameters"] == rows + body[method]
    own = {"lora": ["adapter"], "full": ["body.safetensors"], "rows": []}[method]
    kept = ["body.json", "rows.json", "rows.safetensors", "summary.json"]
    assert sorted(path.name for path in found.out.iterdir()) == sorted([*own, *kept])


@each
def test_what_is_read_back_is_what_was_trained(method: str, tied: bool, tuned: Callable[[str, bool], Tuned]) -> None:
    """Scored again from its folder, the model has the figures that training ended with: also the KL, whose teacher is
    the original model.
    """
    found = tuned(method, tied)
    student = load_student(found.folders["model"], found.out)
    pieces = PieceTable.load(found.folders["tokens"])
    tokenizer = AutoTokenizer.from_pretrained(found.folders["tokens"] / "tokenizer")
    cuts = TwoCuts.read(found.folders["teacher"], "validation", tokenizer, pieces)
    scores = score_student(student, cuts, teacher=True, batch_size=4, chunk=64, device=CPU, description="")
    for name, value in summarise(scores).items():
        assert value == pytest.approx(found.summary[f"finetune/validation_{name}"], rel=1e-4, abs=1e-6), name


@each
def test_the_teacher_stays_the_original(method: str, tied: bool, tuned: Callable[[str, bool], Tuned]) -> None:
    found = tuned(method, tied)
    student, original = load_student(found.folders["model"], found.out), bare(found.folders["model"], CPU)
    hidden = states.read(found.folders["teacher"], "validation").hidden(0)
    assert torch.equal(student.logits_old(hidden), original.logits_old(hidden))
    moved = not torch.equal(student.lm_head.weight, original.lm_head.weight)
    assert moved == (method == "full")


@each
def test_old_rows_and_body(method: str, tied: bool, tuned: Callable[[str, bool], Tuned]) -> None:
    found = tuned(method, tied)
    before, after = load_original(found.folders["model"]), load_model(found.folders["model"], found.out)
    linear = {f"{name}.weight" for name, module in before.named_modules() if isinstance(module, nn.Linear)}
    expected = {"rows": set(), "lora": linear - {"lm_head.weight"}, "full": set(before.state_dict())}[method]
    new = after.state_dict()
    for name, tensor in before.state_dict().items():
        old, now = (
            t[:512] if name in ("model.embed_tokens.weight", "lm_head.weight") else t for t in (tensor, new[name])
        )
        assert torch.equal(old, now) == (name not in expected), name
    trained, first = load_file(found.out / "rows.safetensors"), load_file(found.folders["init"] / "rows.safetensors")
    assert set(trained) == set(first)
    assert not any(torch.equal(trained[name], first[name]) for name in first)


@each
def test_a_plain_folder_gives_the_students_logits(
    method: str, tied: bool, tuned: Callable[[str, bool], Tuned], tmp_path: Path
) -> None:
    found = tuned(method, tied)
    ids = some_ids(found.folders)
    expected = logits_of(load_student(found.folders["model"], found.out), ids)
    load_model(found.folders["model"], found.out).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == tied
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, logits_of(load_student(found.folders["model"], found.folders["init"]), ids))
    assert not list(tmp_path.glob("adapter*"))


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "qwen2", "gpt_neox"])
def test_lora_on_other_families(family: str, tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path) -> None:
    source = tiny_model(family)
    folders = make_inputs(source, fake_tokens(source), tmp_path, tied=True, learnt=False)
    found = tune(folders, tmp_path / "tuned", "lora", steps=2)
    ids = some_ids(folders)
    expected = logits_of(load_student(source, found.out), ids)
    assert (expected - logits_of(load_student(source, folders["init"]), ids)).abs().max() > 1e-3
    with torch.no_grad():
        torch.testing.assert_close(load_model(source, found.out)(ids).logits, expected, atol=1e-4, rtol=1e-4)
    student = load_student(source, found.out)
    assert torch.equal(student.embedding.weight, load_original(source).get_input_embeddings().weight)
    before = load_original(source).state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, student.model.state_dict()[name])}
    ends = ("embed", "wte", "wpe", "head")
    assert changed == {name for name, t in before.items() if t.dim() == 2 and not any(end in name for end in ends)}


def test_the_kl_keeps_the_student_near_its_teacher(
    make: Callable[[bool], dict[str, Path]], tuned: Callable[[str, bool], Tuned], tmp_path: Path
) -> None:
    free, held = tuned("full", False), tune(make(False), tmp_path / "held", "full", terms={"ce": 1.0, "kl": 3.0})
    assert held.summary["finetune/validation_kl_to_teacher"] < 0.8 * free.summary["finetune/validation_kl_to_teacher"]
    losses = zip(held.curve("loss"), held.curve("ce"), held.curve("kl"), strict=True)
    assert all(loss == pytest.approx(ce + 3.0 * kl, rel=1e-5) for loss, ce, kl in losses)
    assert held.summary["finetune/snippets"] == 12


def test_a_loss_is_refused_where_it_cannot_be_computed(make: Callable[[bool], dict[str, Path]], tmp_path: Path) -> None:
    folders = {**make(False), "teacher": tmp_path / "teacher", "tokens": tmp_path / "tokens"}
    shutil.copytree(make(False)["tokens"], folders["tokens"])
    folders["teacher"].mkdir()
    job = Job(RuntimeConfig(device="cpu"))
    teacher.build(TeacherConfig(300, 12, 2000, states="none"), folders, folders["teacher"], job)
    with pytest.raises(ConfigError, match=r"finetune.loss=kl without the teacher's states"):
        tune(folders, tmp_path / "out", "rows", terms={"kl": 1.0})
    found = tune(folders, tmp_path / "out", "rows", steps=2)
    assert "finetune/validation_kl_to_teacher" not in found.summary
    table = folders["tokens"] / "new_tokens.jsonl"
    records = [{**json.loads(line), "pieces": []} for line in table.read_text().splitlines()]
    table.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(ConfigError, match=r"finetune.loss=kl with tokens.as_added_tokens=true"):
        tune(folders, tmp_path / "out", "rows", terms={"kl": 1.0})


def test_the_kl_alone_takes_a_body_that_learns_to_the_teacher(
    make: Callable[[bool], dict[str, Path]], tmp_path: Path
) -> None:
    more = {"steps": 36, "validate_every": 36, "lr": 0.003, "rows_lr": 0.01}
    found = tune(make(False), tmp_path / "cut", "lora", terms={"kl": 1.0}, **more)
    before, after = found.curve("validation_kl_to_teacher")
    assert after < before
    losses = found.curve("kl")
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    assert set(found.log[1][1]) >= {"loss", "kl"} and "ce" not in found.log[1][1]


def test_a_body_that_distillation_has_changed_is_where_fine_tuning_goes_on(
    make: Callable[[bool], dict[str, Path]], tmp_path: Path
) -> None:
    """The folder of the second stage holds what the first one did to the body, too."""
    folders = make(True)
    first = tune(folders, tmp_path / "first", "lora", steps=4)
    for method in METHODS:
        out = tmp_path / method
        out.mkdir()
        job = Job(RuntimeConfig(device="cpu"), log=lambda figures, step: None)
        finetune.build(configured(method, steps=3), {**folders, "rows": first.out}, out, job)
        ids = some_ids(folders)
        by_hand = adapters.adapt(load_original(folders["model"]), first.out)
        if method == "rows":
            student = Student(by_hand, Rows.load(out), 512)
            torch.testing.assert_close(logits_of(load_student(folders["model"], out), ids), logits_of(student, ids))
        assert (out / "before").is_dir() == (method != "full"), "all weights need nothing before them"
        expected = logits_of(load_student(folders["model"], out), ids)
        torch.testing.assert_close(load_model(folders["model"], out)(ids).logits, expected, atol=1e-4, rtol=1e-4)
    (tmp_path / "rows/before/adapter/adapter_model.safetensors").unlink()
    with pytest.raises(ArtifactError):
        load_model(folders["model"], tmp_path / "rows")


def test_fresh_text_comes_first(make: Callable[[bool], dict[str, Path]]) -> None:
    folders = make(False)
    pieces = PieceTable.load(folders["tokens"])
    seen = set(states.read(folders["teacher"], "train").snippets)
    everything, _ = finetune.training_text(configured("rows", snippets=10_000), {**folders}, pieces, print)
    n_fresh = len(everything.snippets) - len(seen)
    assert n_fresh > 3
    assert seen == set(everything.snippets[n_fresh:])
    assert len(set(everything.snippets)) == len(everything.snippets)
    few, _ = finetune.training_text(configured("rows", snippets=3), {**folders}, pieces, print)
    assert few.snippets == everything.snippets[:3]
    tokenizer = load_original_tokenizer(folders["model"])
    assert few.ids == encode(tokenizer, [snippet.text for snippet in few.snippets])
    assert few.offsets == [0, *torch.tensor([len(row) for row in few.ids]).cumsum(0).tolist()]
    assert few.values is None


def test_rows_may_stay_or_learn_at_a_rate_of_their_own(make: Callable[[bool], dict[str, Path]], tmp_path: Path) -> None:
    first = Rows.load(make(True)["init"]).input
    stay = tune(make(True), tmp_path / "stay", "lora", steps=1, train_rows=False)
    assert torch.equal(Rows.load(stay.out).input, first)
    assert (stay.out / "adapter" / "adapter_model.safetensors").is_file()
    for name, rate in (("slow", 1e-4), ("fast", 1e-2)):
        found = tune(make(True), tmp_path / name, "lora", steps=1, rows_lr=rate, lr=1e-3, warmup=0.0)
        # Adam's first step moves by the learning rate (here cosine's at step 1 of 2, a half) where there is a gradient.
        moved = (Rows.load(found.out).input - first).abs().max().item()
        assert moved == pytest.approx(rate * 0.5, rel=1e-2)
        assert found.curve("lr") == pytest.approx([5e-4])


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["nothing"], "not found in the base model"),
        (["lm_head"], "the embedding or the head"),
        (["embed_tokens"], "head"),
    ],
)
def test_modules_that_cannot_be_adapted(
    modules: list[str], message: str, make: Callable[[bool], dict[str, Path]], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"lora.target_modules=.*{message}"):
        tune(make(False), tmp_path / "out", "lora", lora={"target_modules": modules})


def test_chosen_modules_alone_are_adapted(make: Callable[[bool], dict[str, Path]], tmp_path: Path) -> None:
    found = tune(make(False), tmp_path / "out", "lora", lora={"target_modules": ["v_proj", "q_proj"]}, steps=1)
    adapter = load_file(found.out / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in adapter} == {"q_proj", "v_proj"}
    assert json.loads((found.out / "adapter/adapter_config.json").read_text())["target_modules"] == ["q_proj", "v_proj"]


def test_a_damaged_folder_is_refused(tuned: Callable[[str, bool], Tuned], tmp_path: Path) -> None:
    """An adapter that is missing must never mean the original body."""
    for method, file in (("lora", "adapter/adapter_model.safetensors"), ("full", "body.safetensors")):
        found = tuned(method, True)
        copied = shutil.copytree(found.out, tmp_path / method)
        (copied / file).unlink()
        with pytest.raises(ArtifactError, match="fine-tuned weights cannot be read"):
            load_student(found.folders["model"], copied)
        (copied / file).write_bytes(b"not safetensors at all")
        with pytest.raises(ArtifactError, match="fine-tuned weights cannot be read"):
            load_model(found.folders["model"], copied)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"method": "prefix"}'])
def test_a_folder_that_does_not_say_how_it_was_trained(content: str, tmp_path: Path) -> None:
    assert adapters.method_of(tmp_path) == "rows"
    (tmp_path / "body.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"body\.json"):
        adapters.method_of(tmp_path)


def test_nothing_to_do_is_an_error(make: Callable[[bool], dict[str, Path]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"finetune.method='none'"):
        tune(make(False), tmp_path / "out", "none")


def gradients(folders: dict[str, Path], cfg: FinetuneConfig, seed: int = 0) -> tuple[Student, dict[str, Tensor]]:
    """Gradients of the first step, by name of the parameter."""
    torch.manual_seed(cfg.seed)
    pieces = PieceTable.load(folders["tokens"])
    learns = adapters.Training(cfg.method, cfg.lora, cfg.train_rows, cfg.gradient_checkpointing)
    student, _ = adapters.unfreeze(load_original(folders["model"]), Rows.load(folders["init"]), pieces.old_size, learns)
    tokenizer = AutoTokenizer.from_pretrained(folders["tokens"] / "tokenizer")
    batch = Steps(TwoCuts.read(folders["teacher"], "train", tokenizer, pieces), [[0, 1]], chunk=32)[0][0]
    torch.manual_seed(seed)
    step = Objective(student, terms_of(cfg.loss))
    step(batch)[0].backward()
    wanted = {name: parameter for name, parameter in step.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is not None for parameter in wanted.values())
    return student, {name: parameter.grad for name, parameter in wanted.items() if parameter.grad is not None}


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_all_weights_are_those_of_a_plain_model(
    tied: bool, make: Callable[[bool], dict[str, Path]]
) -> None:
    """The extended model of transformers on the same ids: its embedding's gradient is old and new rows' together."""
    folders = make(tied)
    _, found = gradients(folders, configured("full", gradient_checkpointing=True))
    plain = load_model(folders["model"], folders["init"]).requires_grad_(True)
    texts = states.read(folders["teacher"], "train").snippets[:2]
    tokenizer = AutoTokenizer.from_pretrained(folders["tokens"] / "tokenizer")
    ids = encode(tokenizer, [snippet.text for snippet in texts])
    losses = []
    for row in map(torch.tensor, ids):
        logits = plain(row[None]).logits[0, :-1]
        losses.append(nn.functional.cross_entropy(logits, row[1:], reduction="sum"))
    (sum(losses) / sum(len(row) - 1 for row in ids)).backward()  # type: ignore[union-attr]
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None
        grad = found[f"student.model.{name}"]
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            rows = "input" if name.startswith("model.") else "output"
            grad = torch.cat([grad[:512], found[f"student.rows.{rows}"]])
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-3, atol=1e-6)
    assert len(found) == len(list(plain.named_parameters())) + (1 if tied else 2)


def test_dropout_is_on_in_training_alone_and_drawn_anew_from_the_seed(make: Callable[[bool], dict[str, Path]]) -> None:
    cfg = configured("lora", lora={"dropout": 0.5})
    (student, one), (_, same), (_, other) = (gradients(make(False), cfg, seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    ids = some_ids(make(False))
    for module in student.modules():
        if hasattr(module, "lora_B"):
            nn.init.ones_(module.lora_B["default"].weight)  # type: ignore[index]
    assert not torch.equal(logits_of(student, ids), logits_of(student, ids))
    student.eval()
    assert torch.equal(logits_of(student, ids), logits_of(student, ids))
    frozen = adapters.unfreeze(
        load_original(make(False)["model"]), Rows.load(make(False)["init"]), 512, adapters.Training("rows")
    )
    assert frozen[0].training and not frozen[0].model.training


def test_weights_in_bfloat16_are_trained_in_float32_and_kept_as_they_came(
    tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_model(), source)
    facts = json.loads((source / "model.json").read_text())
    (source / "model.json").write_text(json.dumps({**facts, "dtype": "bfloat16"}))
    folders = make_inputs(source, fake_tokens(tiny_model()), tmp_path, tied=True, learnt=False)
    hidden = states.read(folders["teacher"], "validation").hidden(0)
    for method in ("full", "lora"):
        found = tune(folders, tmp_path / method, method, steps=2, lr=1e-5, rows_lr=1e-2)
        assert found.curve("loss")
        student = load_student(source, found.out)
        assert student.model.dtype == torch.bfloat16
        assert torch.equal(student.logits_old(hidden), bare(source, CPU).logits_old(hidden))
    body = load_file(tmp_path / "full" / "body.safetensors")
    assert {tensor.dtype for tensor in body.values()} == {torch.bfloat16}
    adapter = load_file(tmp_path / "lora" / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method", "prefix"), ("lora", LoraConfig(r=0)), ("steps", 0), ("batch_size", 0),
        ("snippets", 0), ("snippet_bytes", 8), ("lr", 0.0), ("rows_lr", -1.0), ("warmup", 1.0), ("schedule", "step"),
        ("weight_decay", -0.1), ("betas", [0.9]), ("clip", 0.0), ("precision", "int8"),
        ("validate_every", 0),
    ],
)  # fmt: skip
def test_values_out_of_range_name_their_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"finetune\.{key}(\.r)?="):
        FinetuneConfig(**{key: value})


@pytest.mark.parametrize(("key", "value"), [("r", 0), ("alpha", 0.0), ("dropout", 1.0), ("target_modules", [])])
def test_values_of_the_adapter_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"finetune\.lora\.{key}="):
        FinetuneConfig("lora", LoraConfig(**{key: value}))
    with pytest.raises(ConfigError, match=rf"distill\.lora\.{key}="):
        DistillConfig(lora=LoraConfig(**{key: -1 if key == "r" else value}))


def test_rows_alone_that_must_not_learn() -> None:
    with pytest.raises(ConfigError, match=r"finetune.train_rows=False: leaves nothing to train"):
        FinetuneConfig("rows", train_rows=False)
