"""Combinations that cannot work are refused with one readable line, before any text is read or any model is made."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from kldistill.corpus import stage as corpus_stage
from kldistill.evaluation.generation import with_vllm
from kldistill.model import stage as model_stage
from kldistill.pipeline import compose
from kldistill.pipeline.checks import check, check_surroundings
from kldistill.pipeline.run import run_pipeline
from kldistill.runtime.errors import ConfigError, KldistillError
from tests.helpers.runs import config

ADDED = ["tokens=list", "tokens.terms={terms}", "tokens.as_added_tokens=true"]

# Overrides, and what the message must say: the keys that do not go together, and a way out.
IMPOSSIBLE = {
    "output rows solved by a loss that does not see them": (
        ["distill=solved", "loss=hidden"],
        "distill.solve.iterations=10 with loss=hidden: a loss that does not see the logits of new tokens says",
    ),
    "output rows solved by a loss that sees old tokens alone": (
        ["loss=kl_old"],
        "distill.solve.iterations=12 with loss=kl_old: a loss that does not see the logits of new tokens says",
    ),
    "output rows solved at states that are not there": (
        ["distill.teacher=none", "loss=ce"],
        "distill.solve.iterations=12 with distill.teacher=none: output rows are solved at the teacher's states, and "
        "there are none. Use distill.teacher=self, or distill.solve.iterations=0.",
    ),
    "kl without a teacher": (
        ["distill.teacher=none", "loss=kl"],
        "loss=kl with distill.teacher=none: its term kl compares with the teacher. Use distill.teacher=self, "
        "or loss=ce.",
    ),
    "one term of a sum without a teacher": (
        ["distill.teacher=none"],
        "loss=kl_ce_light with distill.teacher=none: its term kl",
    ),
    "fine-tuning without stored states": (
        ["distill.teacher=online", "finetune=lora", "loss@finetune.loss=kl"],
        "loss@finetune.loss=kl with distill.teacher=online: its term kl compares with the teacher's states",
    ),
    "hidden without a teacher": (["distill.teacher=none", "loss=hidden"], "loss=hidden with distill.teacher=none"),
    "kl_old without a teacher": (["distill.teacher=none", "loss=kl_old"], "loss=kl_old with distill.teacher=none"),
    "kl of tokens without pieces": (
        [*ADDED, "init=mean", "loss=kl"],
        "loss=kl with tokens.as_added_tokens=true: its term kl needs the exact pieces of every new token",
    ),
    "kl_first of tokens without pieces": ([*ADDED, "init=mean", "loss=kl_first"], "Use loss=ce, kl_old or hidden"),
    "an init that needs pieces": (
        [*ADDED, "loss=ce"],
        "init.input=subtoken_mean with tokens.as_added_tokens=true: it needs the exact pieces of every new token, and "
        "AddedTokens have none. Use init=random or init=mean, or tokens.as_added_tokens=false.",
    ),
    "an output init that needs pieces": (
        [*ADDED, "loss=ce", "init=subtoken_mean", "init.input._target_=kldistill.rows.inits.mean"],
        "init.output=subtoken_mean with tokens.as_added_tokens=true",
    ),
    "merges that are AddedTokens": (["tokens.as_added_tokens=true"], "goes with tokens.method=list"),
    "a vocabulary smaller than the tiny model's": (
        ["model=tiny", "tokens.vocab_size=512"],
        "tokens.vocab_size=512: the old vocabulary has 512 tokens already. Give a larger total, or tokens.n_new.",
    ),
    "a vocabulary smaller than the embedded model's": (
        ["tokens.vocab_size=49152"],
        "tokens.vocab_size=49152: the old vocabulary has 49152 tokens already.",
    ),
    "one row for two matrices": (
        ["model=tiny", "model.tied=false", "init.tie=true"],
        "init.tie=true with model.tied=false: the model has separate input and output embeddings; leave init.tie=null.",
    ),
    "no file of terms": (
        ["tokens=list", "tokens.terms=nowhere.txt"],
        "tokens.terms='nowhere.txt': there is no such file. It holds one term a line.",
    ),
    "a stage that is none": (["stages=[tokens,train]"], "stages=['train']: stages are model, corpus, tokens"),
    "a forced stage that is none": (["force=[evaluat]"], "force=['evaluat']: stages are model, corpus, tokens"),
    "no frozen layer to split": (
        ["runtime.shard=true", "finetune=full"],
        "runtime.shard=True: splits frozen layers, and finetune=full has none; use finetune=lora.",
    ),
    "half precision": (["distill.precision=fp16"], "distill.precision='fp16': must be no or bf16"),
    "passes that not all processes have": (
        ["runtime.shard=true", "eval.marginal_words=10"],
        "runtime.shard=True: needs every process to run the model equally often",
    ),
}


def filled(overrides: Sequence[str], folder: Path) -> list[str]:
    """The overrides with the path of a file of terms."""
    (folder / "terms.txt").write_text("some_term\n")
    return [override.format(terms=folder / "terms.txt") for override in overrides]


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_work_is_refused_before_anything_is_made(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides, message = IMPOSSIBLE[name]

    def too_early(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("began to work on a configuration that cannot work")

    for module in (model_stage, corpus_stage):
        monkeypatch.setattr(module, "build", too_early)
        monkeypatch.setattr(module, "identity", too_early)
    outputs = tmp_path / "outputs"
    composed = config([*filled(overrides, tmp_path), "logger=none", f"outputs={outputs}"])
    with pytest.raises(ConfigError) as caught:
        run_pipeline(compose.typed(composed), outputs / "run")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not outputs.exists(), "neither a run folder nor an artifact"


@pytest.mark.parametrize(
    "overrides",
    [
        ["distill=rows", "distill.teacher=none", "loss=ce"],
        [*ADDED, "loss=ce", "init=mean"],
        [*ADDED, "distill=rows", "loss=kl_old", "init=random"],
        [*ADDED, "distill=rows", "loss=hidden", "init=mean"],
        ["model=tiny", "tokens.vocab_size=513"],
        ["tokens.vocab_size=49153"],
        ["model=hf", "model.path=some/model", "tokens.vocab_size=400"],
        ["model=tiny", "model.tied=true", "init.tie=true"],
        ["model=tiny", "model.tied=false", "init.tie=false"],
        ["distill.precision=bf16", "runtime.device=cpu"],
        ["stages=[]", "force=[model,evaluate,export]"],
    ],
    ids=str,
)
def test_what_can_work_or_cannot_be_known_yet_passes(overrides: list[str], tmp_path: Path) -> None:
    check(compose.typed(config(filled(overrides, tmp_path))))


# ---- suites, fine-tuning, export


def checked(*overrides: str) -> None:
    """Compose and check."""
    check(compose.typed(config([*overrides])))


def test_a_suite_that_runs_programs_needs_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kldistill.evaluation.sandbox.pool.unavailable", lambda: "bubblewrap is not installed")
    with pytest.raises(ConfigError, match=r"need a sandbox: bubblewrap is not installed.*eval.allow_unsandboxed=true"):
        checked("eval.suites=[humaneval]")
    checked("eval.suites=[completion]")
    checked("eval.suites=[humaneval]", "eval.allow_unsandboxed=true")
    checked("eval.suites=[humaneval]", "stages=[tokens]")


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["eval.suites=[mbpp]", "eval.mbpp.path=/no/such/file"], "eval.mbpp.path='/no/such/file': cannot be read"),
        (["eval.suites=[choice]", "eval.mbpp.path=/no/such/file"], "eval.mbpp.path='/no/such/file': cannot be read"),
        (["eval.suites=[choice]", "eval.choice.suites=[mbbp]"], "eval.choice.suites: there is no suite 'mbbp'"),
        (
            ["eval.suites=[completion]", "eval.completion.where=end"],
            "eval.completion.where='end': must be line",
        ),
        (
            ["finetune=lora", "loss@finetune.loss=kl", "loss=ce", "distill.teacher=none"],
            "loss@finetune.loss=kl with distill.teacher=none",
        ),
        (["export.gguf=true", "tokens.boundary=dotted"], "export.gguf=true with tokens.boundary=dotted: llama.cpp"),
    ],
)
def test_what_cannot_work_later_is_refused_now(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError if "mbpp.path" not in " ".join(overrides) else KldistillError) as caught:
        checked("eval.allow_unsandboxed=true", *overrides)
    assert str(caught.value).startswith(message)


def test_vllm_is_looked_for_before_anything_runs_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(with_vllm, "PROBE", "import no_such_package")
    chosen = ["model=tiny", "eval.backend=vllm"]
    check_surroundings(compose.typed(config(chosen)))  # no suite: nothing is written
    chosen += ["eval.suites=[completion]"]
    check_surroundings(compose.typed(config([*chosen, "stages=[tokens]"])))
    for stages in ([], ["stages=[generate_original_completion]"]):
        with pytest.raises(ConfigError, match=r"eval.backend=vllm: .*no_such_package.*pip install 'kldistill\[vllm\]'"):
            check_surroundings(compose.typed(config([*chosen, *stages])))
