"""Every YAML below conf/ composes and validates; wrong values are refused by Hydra or by the schemas, readably."""

import copy
import json
import re
from dataclasses import fields, is_dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from kldistill.corpus.config import CorpusConfig
from kldistill.evaluation.suites import stage as tasks_stage
from kldistill.pipeline import compose
from kldistill.pipeline.checks import check
from kldistill.runtime.errors import ConfigError
from kldistill.training.objective import any_masked, terms_of
from tests.helpers.composing import composed, config
from tests.helpers.paths import ROOT
from tests.helpers.quick_hydra import plain

CONF = ROOT / "conf"
PRESETS = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
DEFAULT = Path("config.yaml")  # what is composed of it without any choice has every suite in it, too
SUITES = sorted(path.stem for path in (CONF / "eval/suite").glob("*.yaml"))
# Values without which a preset means nothing.
NEEDED = {
    "model/hf": ["model.path=some/model"],
    "model/gguf": ["model.path=some/model.gguf"],
    "corpus/local_files": ["corpus.path=some/folder"],
    "corpus/hf_dataset": ["corpus.path=some/dataset"],
    "corpus/chat": ["corpus.path=json", "corpus.data_files=[chats.jsonl]"],
    "tokens/list": ["tokens.terms={tmp}/terms.txt"],
    "loss/hidden": ["distill=rows"],  # nothing to solve
    "loss/kl_old": ["distill=rows"],
}
FUNCTIONS = ["init.input", "init.output", "corpus.source", "corpus.general", "loss.terms.kl.function", "model"]


@pytest.fixture(scope="module")
def base() -> DictConfig:
    """The default configuration: composing is slow, so most tests change a copy of this one."""
    return config([])


def changed(base: DictConfig, key: str, value: Any) -> DictConfig:
    """A copy of the configuration with one more value, new or not."""
    cfg = copy.deepcopy(base)
    OmegaConf.update(cfg, key, value, force_add=True)
    return cfg


def choice_of(preset: Path) -> list[str]:
    """Overrides that choose the preset."""
    group, name = preset.parent.as_posix(), preset.stem
    if group in (".", "eval/suite"):  # every suite is in every configuration
        return []
    if group.startswith("loss/term"):
        return [f"+loss/term@loss.terms.{name}_too={name}"]  # beside those that the default loss has
    return [f"{group}={name}"]


def in_company() -> list[list[Path]]:
    """Every preset once, with one of each other group beside it; alone, if it chooses of other groups too, or minds."""
    groups: dict[Path, list[Path]] = {}
    for preset in PRESETS:
        if choice_of(preset):
            groups.setdefault(preset.parent, []).append(preset)
    alone = [preset for group in ("experiment", "init", "loss") for preset in groups.pop(Path(group))]
    together = [[preset for preset in row if preset] for row in zip_longest(*groups.values())]
    return [[DEFAULT], *together, *([preset] for preset in alone)]


def check_valid(presets: list[Path], tmp_path: Path) -> None:
    """The presets compose to a configuration that passes all checks."""
    (tmp_path / "terms.txt").write_text("word\n")
    keys = [preset.with_suffix("").as_posix() for preset in presets]
    values = [value.format(tmp=tmp_path) for key in keys for value in NEEDED.get(key, [])]
    cfg = compose.typed(config([override for preset in presets for override in choice_of(preset)] + values))
    check(cfg)
    assert isinstance(cfg, compose.Config)
    for group in set(compose.Config.__dataclass_fields__) & {preset.parts[0] for preset in presets}:
        assert is_dataclass(getattr(cfg, group)), "the group is typed"


@pytest.mark.parametrize("presets", in_company(), ids=lambda row: row[0].as_posix())
def test_every_preset_composes_and_is_valid(presets: list[Path], tmp_path: Path) -> None:
    check_valid(presets, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("preset", [preset for preset in PRESETS if choice_of(preset)], ids=str)
def test_every_preset_is_valid_beside_the_defaults(preset: Path, tmp_path: Path) -> None:
    check_valid([preset], tmp_path)


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=3", "distill.lr=${loss.lr}", "outputs='a b'", "+model.a=[1,a]", "~corpus.general.exclude"],
        ["experiment=thesis", "loss@finetune.loss=kl", "eval.suites=[mbpp]", "eval.limits={cpu_seconds: 2}"],
    ],
)
def test_the_tests_own_way_to_compose_is_hydras(overrides: list[str]) -> None:
    """It sets the values in a copy of what Hydra has composed of the presets alone, and reads each of these once."""
    ours = config(overrides)
    with plain():
        theirs = composed(overrides)
    assert OmegaConf.to_yaml(ours) == OmegaConf.to_yaml(theirs)
    for _ in range(2):
        again = composed(overrides)
        assert again == theirs and OmegaConf.to_yaml(again) == OmegaConf.to_yaml(theirs), "nor has this"
        again.distill.steps = 1
    assert OmegaConf.is_struct(ours) and OmegaConf.is_struct(theirs)
    assert OmegaConf.get_type(ours, "distill") is OmegaConf.get_type(theirs, "distill") is compose.DistillConfig
    ours.distill.steps = 1
    assert config(overrides) == theirs, "nobody has another's copy"


@pytest.mark.parametrize("refused", ["distill.steps=many", "modle=tiny", "loss=klx"])
def test_the_tests_own_way_to_compose_refuses_as_hydra_does(refused: str) -> None:
    told = []
    for way in (config, composed):
        with pytest.raises(Exception) as caught:
            way(["seed=1", refused])
        told.append((type(caught.value), str(caught.value), str(caught.value.__cause__)))
    assert told[0] == told[1]


def test_every_preset_is_tried() -> None:
    tried = [preset for row in in_company() for preset in row]
    assert len(tried) == len(set(tried))
    assert {preset for preset in PRESETS if preset not in tried} == {Path(f"eval/suite/{name}.yaml") for name in SUITES}


def test_there_are_presets_of_every_group() -> None:
    groups = {preset.parts[0] for preset in PRESETS if len(preset.parts) > 1}
    assert groups >= {"model", "corpus", "tokens", "init", "loss", "distill", "eval", "export", "logger", "experiment"}
    for name in compose.SCHEMAS:
        uses = [preset for preset in PRESETS if f"/schema/{name}@_here_" in (CONF / preset).read_text()]
        assert uses, f"schema {name} is used by no preset"


def _experiments() -> list[str]:
    return sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("at, experiment", enumerate(_experiments()))
def test_every_experiment_works_with_text_of_ones_own(at: int, experiment: str) -> None:
    """With one kind of it or the other in turn: the next test shows that none minds which."""
    corpus = ("corpus=local_files", "corpus=hf_dataset")[at % 2]
    cfg = compose.typed(config([f"experiment={experiment}", corpus, "corpus.path=some/folder"]))
    assert getattr(cfg.corpus, "path", None) == "some/folder"


def test_no_experiment_sets_what_only_one_choice_of_a_group_has() -> None:
    """Whatever it sets is a key of the group's own type, so it fits every choice."""
    for experiment in _experiments():
        node = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
        for key in node.get("corpus") or {}:
            assert key in {item.name for item in fields(CorpusConfig)}, f"{experiment}: corpus.{key}"
        assert "model" not in node, f"{experiment}: model"


@pytest.mark.parametrize("preset", [p for p in PRESETS if p.parent == Path("eval/suite")])
def test_the_keys_of_a_suite_are_the_fields_of_its_class(preset: Path, base: DictConfig) -> None:
    node = OmegaConf.to_container(base.eval[preset.stem], resolve=True)
    suite = tasks_stage.suite_of(node, preset.stem)
    assert {item.name for item in fields(suite)} == set(node) - {"_target_"}


@pytest.mark.parametrize(
    "override, names",
    [
        ("distill.stepz=3", "distill.stepz"),
        ("eval.limt=3", "eval.limt"),
        ("eval.mbpp.paht=x", "eval.mbpp.paht"),
        ("finetune.lora.rank=3", "finetune.lora.rank"),
        ("interpret.n=3", "interpret.n"),
        ("tokens.n_news=3", "tokens.n_news"),
        ("modle=tiny", "modle"),
        ("loss=klx", "loss/klx"),
        ("distill.steps=many", "distill.steps"),
        ("init.calibrate=perhaps", "init.calibrate"),
        ("corpus.packages=3", "corpus.packages"),
        ("loss.terms.kl.weight=heavy", "loss.terms.kl.weight"),
        ("loss.terms.kl.wait=1", "wait"),
        ("runtime.device=[cpu]", "runtime.device"),
    ],
)
def test_hydra_refuses_wrong_keys_and_types_by_name(override: str, names: str) -> None:
    with pytest.raises(Exception) as caught:
        config([override])
    assert isinstance(caught.value, ConfigCompositionException) or "Could not" in str(caught.value)
    assert names in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize(
    "choice, message",
    [
        (
            "model=hf",
            "model.path: Structured config of type `HfModelConfig` has missing mandatory value: path. Give it",
        ),
        ("corpus=local_files", "corpus.path=None: name the folder of your files: corpus.path=FOLDER."),
        ("corpus=hf_dataset", "corpus.path=None: name a dataset, folder or format"),
        ("tokens=list", "tokens.terms=None: tokens.method=list needs a file"),
    ],
)
def test_a_choice_without_its_value_says_which_is_missing(choice: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose.typed(config([choice]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("corpus.packages", [], "corpus.packages=[]: name installed packages"),
        ("corpus.test", 0.7, "corpus.test=0.7: is a share of the documents"),
        ("distill.steps", 0, "distill.steps=0: must be at least 1."),
        ("distill.lr", -1, "distill.lr=-1.0: must be above 0."),
        ("distill.lr", "${loss.rate}", "distill.lr: Interpolation key 'loss.rate' not found"),
        ("distill.schedule", "step", "distill.schedule='step': must be cosine, linear or constant_with_warmup"),
        ("distill.betas", [0.9], "distill.betas=[0.9]: must be two numbers"),
        ("distill.teacher", "other", "distill.teacher='other': must be self, online or none."),
        (
            "tokens.boundary",
            "letter",
            "tokens.boundary='letter': must be auto, word, identifier, dotted, qualified or line.",
        ),
        ("tokens.n_new", None, "tokens.n_new=None: must be at least 1 (or give tokens.vocab_size)."),
        ("loss.terms.kl.weight", 0, "loss.terms.*.weight=0.0: must be above 0"),
        ("eval.window_bytes", 1, "eval.window_bytes=1: must be at least 32."),
        ("eval.suites", ["humanevil"], f"eval.suites=['humanevil']: suites are {', '.join(SUITES)}."),
        ("eval.limit", 0, "eval.limit=0: must be at least 1, or null for all."),
        ("eval.n_samples", 5, "eval.n_samples=5: all samples of a task would be the same at eval.temperature=0"),
        ("eval.limits.cpu_seconds", 0, "eval.limits.cpu_seconds=0.0: must be above 0."),
        ("distill.draw", "best", "distill.draw='best': must be hash or cover."),
        ("export.push_to_hub", "me", "export.push_to_hub='me': must be a repository of the hub"),
        ("runtime.checkpoint_every", 0, "runtime.checkpoint_every=0: must be at least 1."),
        ("logger.mode", "loud", "logger.mode='loud': must be offline"),
    ],
)
def test_values_out_of_range_are_one_readable_line(base: DictConfig, key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose.typed(changed(base, key, value))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", FUNCTIONS)
@pytest.mark.parametrize(
    "target", ["os.system", "kldistill.nothing", "kldistill.model.stage.AutoConfig", "kldistill_evil.x", ""]
)
def test_only_functions_of_this_package_may_be_named(base: DictConfig, key: str, target: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{key}._target_={target!r}")):
        check(compose.typed(changed(base, f"{key}._target_", target)))


@pytest.mark.parametrize(
    "key", ["corpus.source.packages", "corpus.general.exclude", "loss.terms.ce.function.extra", "init.input.rate"]
)
def test_a_call_hidden_in_an_argument_is_refused_too(base: DictConfig, key: str) -> None:
    """Hydra would call it, whatever the outer function is."""
    for value, where in (({"_target_": "os.getcwd"}, key), ([{"_target_": "os.getcwd"}], f"{key}[0]")):
        cfg = compose.typed(changed(base, key, value))
        with pytest.raises(ConfigError, match=re.escape(f"{where}._target_='os.getcwd'")):
            check(cfg)


def test_seed_and_learning_rate_follow_their_defaults() -> None:
    cfg = compose.typed(config(["seed=7", "distill=rows", "loss=ce", "loss.lr=0.25"]))
    assert (cfg.distill.seed, cfg.eval.seed, cfg.distill.lr) == (7, 7, 0.25)
    assert compose.typed(config(["seed=7", "distill.seed=1"])).distill.seed == 1


def test_presets_that_only_name_their_terms_get_the_terms_own_settings(base: DictConfig) -> None:
    terms = compose.typed(base).loss.terms
    assert (terms["kl"].weight, terms["ce"].weight) == (1.0, 0.1)
    assert terms["kl"].function == {"_target_": "kldistill.losses.kl"}


@pytest.mark.parametrize("fact", ["teacher=false", "of=hidden", "pieces=false"])
def test_what_a_loss_needs_is_no_setting(fact: str) -> None:
    with pytest.raises(ConfigCompositionException, match=f"loss.terms.kl.{fact}"):
        config([f"loss.terms.kl.{fact}"])


def test_the_slice_that_training_gets_holds_the_loss(base: DictConfig) -> None:
    cfg = compose.typed(base)
    assert compose.resolved(cfg.distill)["loss"] == compose.resolved(cfg.loss)


def test_typed_values_become_the_plain_ones_that_omegaconf_makes_of_them(base: DictConfig) -> None:
    cfg = compose.typed(changed(base, "logger.tags", ["a \\${text}"]))
    plain = compose.resolved(cfg)
    assert plain["logger"]["tags"] == ["a ${text}"], "not looked up a second time"
    cfg.logger.tags = []
    plain = compose.resolved(cfg)
    assert plain == OmegaConf.to_container(OmegaConf.structured(cfg), resolve=True)
    assert json.loads(json.dumps(plain)) == plain


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("corpus.path=~/src/project", "corpus.path=/home/me/src/project"),
        ("outputs=~", "outputs=/home/me"),
        ("corpus.data_files=[~/a.jsonl,b,~/c d.jsonl]", "corpus.data_files=[/home/me/a.jsonl,b,'/home/me/c d.jsonl']"),
        ("tokens.terms=~/a.txt,~/b.txt", "tokens.terms=/home/me/a.txt,/home/me/b.txt"),
        ("--config-dir=~/my conf", "--config-dir=/home/me/my conf"),
        ("model.path=a~b", "model.path=a~b"),
        ("model.name='~x'", "model.name='~x'"),
        ("~logger", "~logger"),
    ],
)
def test_the_home_folder_on_the_command_line(override: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert compose.with_home(override) == wanted


def test_the_home_folder_works_in_every_path_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quoted on the command line, or in a YAML file of one's own, the ``~`` reaches the configuration as it is."""
    monkeypatch.setenv("HOME", "/home/me")
    texts = ["corpus=local_files", 'corpus.path="~/c"', 'outputs="~/o"', 'tokens.terms="~/t"', 'eval.mbpp.path="~/m"']
    cfg = compose.typed(config([*texts, "tokens=list", "model=hf", 'model.path="~/x"']))
    assert (cfg.outputs, cfg.tokens.terms, cfg.model.path) == ("/home/me/o", "/home/me/t", "/home/me/x")
    assert cfg.corpus.path == cfg.corpus.source["path"] == "/home/me/c"
    assert cfg.eval.mbpp["path"] if isinstance(cfg.eval.mbpp, dict) else cfg.eval.mbpp.path == "/home/me/m"
    listed = compose.typed(config(["corpus=hf_dataset", "corpus.path=json", 'corpus.data_files=["~/a","/b"]']))
    assert listed.corpus.source["data_files"] == ["/home/me/a", "/b"]
    assert compose.typed(config(["model=smollm2_135m", 'model.file="~/f"'])).model.file == "/home/me/f"


def test_a_term_of_the_loss_can_be_masked_where_it_knows_how() -> None:
    masked = compose.typed(config(["loss=kl_ce_light_masked"]))
    assert {name: term.function.keywords for name, term in terms_of(masked.distill.loss).items()} == {
        "kl": {"masked": True},
        "ce": {"masked": True},
    }
    one = compose.typed(config(["loss=kl_ce", "+loss.terms.kl.function.masked=true"]))
    assert [any_masked({name: term}) for name, term in terms_of(one.distill.loss).items()] == [True, False]
    with pytest.raises(ConfigError, match="masked"):
        check(compose.typed(config(["loss=kl_old", "+loss.terms.kl_old.function.masked=true"])))
