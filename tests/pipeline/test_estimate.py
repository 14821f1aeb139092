"""The plan of a run: its numbers are those of the model that is loaded, and nothing runs."""

from pathlib import Path

import pytest
from transformers import AutoConfig

from kldistill.model import gemma3, smollm2
from kldistill.pipeline import command, compose, estimate
from kldistill.pipeline.estimate import Need, Shape, measured, needs, shape_of, told
from kldistill.runtime.devices import ON_CPU
from kldistill.runtime.errors import ConfigError
from tests.helpers.artifacts import MakeModel
from tests.helpers.runs import SMALL, config

SEVEN = Shape(7_600_000_000, 7_000_000_000, 4096, 32, 128_000, False, 2)


def planned(*overrides: str) -> compose.Config:
    return compose.typed(config(["distill=rows", *overrides]))


def amounts(found: list[Need]) -> dict[str, float]:
    return {need.what: need.amount for need in found}


def test_the_shape_is_that_of_the_loaded_model(tiny_model: MakeModel) -> None:
    folder = tiny_model(tied=False)
    shape = shape_of(planned("model=hf", f"model.path={folder}", "model.dtype=bfloat16", "corpus.packages=[rich]"))
    text = AutoConfig.from_pretrained(folder)
    assert (shape.width, shape.layers, shape.vocabulary, shape.tied) == (32, 2, text.vocab_size, False)
    assert shape.parameters - shape.body == 2 * 32 * text.vocab_size
    assert shape.weight_bytes == 2


@pytest.mark.parametrize(
    ("made", "millions", "vocabulary"), [(smollm2.config(), 134.5, 49_152), (gemma3.config(), 268.1, 262_144)]
)
def test_embedded_models_are_known_without_their_files(made, millions: float, vocabulary: int) -> None:
    shape = measured(made, 4)
    assert shape.parameters / 1e6 == pytest.approx(millions, rel=1e-3)
    assert (shape.vocabulary, shape.tied) == (vocabulary, True)


def test_the_table_of_the_documents() -> None:
    """docs/memory.md's 7B, in bfloat16, with 2,048 new tokens."""
    cfg = planned("tokens.n_new=2048", "distill.batch_size=2", "runtime.chunk=128", "runtime.pass_tokens=1000")
    found = amounts(needs(cfg, SEVEN))
    assert found["memory: frozen weights"] == pytest.approx(15e9, rel=0.02)
    assert found["memory: new rows with AdamW"] == pytest.approx(0.13e9 * 2, rel=0.05)  # untied: two rows
    assert found["memory: logits of a chunk"] == pytest.approx(0.27e9, rel=0.02)
    assert found["memory: activations of a pass"] == pytest.approx(3.6e9, rel=0.15)


def test_a_process_holds_its_part_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    whole, part = (
        amounts(needs(planned(f"runtime.shard={shard}"), SEVEN))["memory: frozen weights"] for shard in (False, True)
    )
    assert whole == 2 * 7.6e9
    assert part == pytest.approx(2 * (0.6e9 + 7e9 / 8 + 2 * 7e9 / 32))


def test_what_a_choice_costs() -> None:
    plain = amounts(needs(planned(), SEVEN))
    online = amounts(needs(planned("distill.teacher=online"), SEVEN))
    assert "disk: the teacher's states" in plain and "disk: the teacher's states" not in online
    assert online["work: distillation"] > 1.3 * plain["work: distillation"] and "work: teacher" not in online
    by_ce = [
        amounts(needs(planned(f"distill.teacher={kind}", "loss=ce"), SEVEN))["work: distillation"]
        for kind in ("online", "self")
    ]
    assert by_ce[0] == by_ce[1] < plain["work: distillation"], "no step runs the teacher, or its head"
    again = amounts(needs(planned("distill.gradient_checkpointing=true"), SEVEN))
    assert again["memory: activations of a pass"] < 0.1 * plain["memory: activations of a pass"]
    assert again["work: distillation"] > 1.3 * plain["work: distillation"]
    passes = amounts(needs(planned("distill.batch_size=64", "runtime.pass_tokens=1000"), SEVEN))
    assert passes["memory: activations of a pass"] == 34 * 4096 * 2 * 32 * 1000
    short = amounts(needs(planned("distill.batch_size=64", "runtime.device=cpu"), SEVEN))
    assert short["memory: activations of a pass"] == 34 * 4096 * 2 * 32 * ON_CPU.pass_tokens
    twice = amounts(needs(planned("distill.steps=400"), SEVEN))
    assert twice["work: distillation"] == pytest.approx(2 * plain["work: distillation"])
    adapted = amounts(needs(planned("distill=lora"), SEVEN))
    assert adapted["memory: distillation in all"] > plain["memory: distillation in all"]
    assert "work: solving" not in plain
    every, part = (
        amounts(needs(planned("distill=lora", f"distill.sampled_softmax={size}"), SEVEN)) for size in ("null", 12_288)
    )
    left = 2 * 4096 * (128_000 - 12_288) * 400 * 700 / 3.3
    assert every["work: solving"] - part["work: solving"] == pytest.approx(left), "each position's head, once"
    assert every["work: distillation"] > part["work: distillation"]
    few = amounts(needs(planned("distill=lora", "distill.solve.snippets=100", "distill.snippets=800"), SEVEN))
    assert few["work: solving"] == pytest.approx(adapted["work: solving"] / 4)
    assert "memory: map of the new rows" not in plain
    mapped = amounts(needs(planned("distill.shared_lr=0.1", "tokens.n_new=2048"), SEVEN))
    assert mapped["memory: map of the new rows"] == 32 * 2048 * 4096 + 112 * 4096**2, "untied: two of them"
    full = amounts(needs(planned("finetune=full"), SEVEN))
    assert full["memory: full fine-tuning in all"] > 122e9
    none = amounts(needs(planned("tokens=none"), SEVEN))
    assert none["memory: new rows with AdamW"] == 0


def test_text_that_is_written_and_all_cuts_of_words_cost_too() -> None:
    plain = amounts(needs(planned(), SEVEN))
    assert not {"work: text that the model writes", "work: all cuts of words"} & plain.keys()
    body, head = 2 * 7e9, 2 * 4096 * (128_000 + 512)
    token = estimate.BYTES_PER_TOKEN
    test = amounts(needs(planned("eval.written=100"), SEVEN))
    assert test["work: text that the model writes"] == pytest.approx(100 * 256 / token * (2 * body + head))
    more = test["work: scoring"] - plain["work: scoring"]
    assert more == pytest.approx(3 * 100 * 256 / token * (2 * body + 2 * head)), "three models, prompts without a head"
    train = amounts(needs(planned("distill.self_written=0.5", "distill.snippets=40"), SEVEN))
    assert train["work: text that the model writes"] == pytest.approx(20 / token * ((256 + 700) * body + 700 * head)), (
        "half of the snippets"
    )
    without = amounts(needs(planned("distill.snippets=40"), SEVEN))
    assert train["work: teacher"] - without["work: teacher"] == pytest.approx(20 * 256 / token * body)
    assert train["disk: the teacher's states"] > without["disk: the teacher's states"]
    words, tuned = (
        amounts(needs(planned("eval.marginal_words=100", *more), SEVEN))["work: all cuts of words"]
        for more in ([], ["finetune=lora"])
    )
    assert words == pytest.approx(2 * 100 * (body * (1500 / token * 0.83 / 5 + 11) + 6 * head))
    assert tuned == pytest.approx(1.5 * words), "one more extended model"
    assert "work: all cuts of words" not in amounts(needs(planned("eval.marginal_words=100", "tokens=none"), SEVEN))
    some = planned("eval.marginal_words=100", "eval.written=100", "model=tiny", "corpus.packages=[rich]")
    assert "work: text that the model writes" in told(some, 1e9) and "work: all cuts of words" in told(some, 1e9)


def test_every_text_that_is_scored_counts() -> None:
    plain, prose, control = (
        amounts(needs(planned(*more), SEVEN))["work: scoring"]
        for more in ([], ["corpus/general_code=none"], ["finetune=lora", "finetune.control=true"])
    )
    assert prose / plain == pytest.approx((40 + 16) / (40 + 2 * 16))
    assert control / plain == pytest.approx(5 / 3), "fine-tuned, and the original fine-tuned"


def test_time_follows_the_rate() -> None:
    cfg = planned(*SMALL, "corpus.path=.")
    shape = shape_of(cfg)
    work = sum(need.amount for need in needs(cfg, shape) if need.unit == "FLOP")
    assert f"In all about 100 s at {work / 100:.3g} FLOP/s, as given" in told(cfg, work / 100)
    assert "In all about 3.0 h" in told(cfg, work / 3 / 3600)
    assert "half of what a large product of matrices reaches here" in told(cfg)


def test_a_plan_is_of_the_stages_that_run() -> None:
    words = [*SMALL, "corpus.path=."]
    everything, scored = told(planned(*words), 1e9), told(planned(*words, "stages=[evaluate]"), 1e9)
    assert "work: distillation" in scored and "work: scoring" in scored, "what is scored is trained before"
    assert "disk: the exported model" in everything and "disk: the exported model" not in scored
    tokens = told(planned(*words, "stages=[tokens]"), 1e9)
    assert "work:" not in tokens and "memory:" not in tokens and "In all" not in tokens
    assert "stages=[tokens] never runs the model" in tokens
    taught = told(planned(*words, "stages=[teacher]"), 1e9)
    assert "work: teacher" in taught and "work: distillation" not in taught and "memory: frozen weights" in taught


def test_the_command_tells_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.py").write_text("x = 1\n")
    words = [*SMALL, "corpus.path=.", "outputs=made"]
    with pytest.raises(SystemExit) as ended:
        command.inspect(["--plan=1e9", *words])
    assert ended.value.code == 0
    assert "work: distillation" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["code.py"], "no folder is made"
    for word in ("--plan=fast", "--plan=-1", "--plan=inf"):
        with pytest.raises(ConfigError, match=rf"^{word}: is no number of FLOP a second"):
            command.inspect([word, *words])
    with pytest.raises(ConfigError, match="--plan tells of one run"):
        command.inspect(["--plan", "-m", *words])
    assert estimate.BYTES_PER_TOKEN > 1
