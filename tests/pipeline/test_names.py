"""Names of run folders: readable, bounded, and apart."""

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kldistill.pipeline import names


def test_no_overrides_and_those_that_do_not_change_the_result_give_the_default_name() -> None:
    aside = ["experiment=quickstart", "stages=[tokens]", "force=[init]", "logger=none", "logger.mode=online"]
    aside += ["runtime.workers=2", "outputs=/x", "hydra.verbose=true", "+hydra.x=1", "~logger", "hydra/launcher=x"]
    assert names.overrides_name([]) == "default"
    assert names.overrides_name(aside) == "default"
    assert names.overrides_name([*aside, "seed=1"]) == "seed=1"


def test_plain_overrides_are_their_own_name_in_any_order() -> None:
    assert names.overrides_name(["seed=1", "loss=ce"]) == "loss=ce,seed=1"
    assert names.overrides_name(["loss=ce", "seed=1"]) == "loss=ce,seed=1"


def test_escaped_names_stay_readable_and_apart() -> None:
    found = [names.overrides_name([f"corpus.path={path}"]) for path in ("a_b", "a b", "a:b", "a/b", "ä/b")]
    assert found[0] == "corpus.path=a_b"
    shown = [re.sub(r"-[0-9a-f]{8}$", "", name) for name in found]
    assert shown == ["corpus.path=a_b", "corpus.path=a_b", "corpus.path=a_b", "corpus.path=b", "corpus.path=b"]
    assert len(set(found)) == len(found)


def test_a_project_is_known_by_its_folder_and_runs_by_what_differs() -> None:
    """Of runs with long paths and many keys, names used to end before anything that told them apart."""
    path = "/home/someone/work/clients/acme/repositories/billing-service/src/main/python"
    common = ["corpus=local_files", f"corpus.path={path}", "corpus.validation=0.1", "distill.general=0.1"]
    found = [names.overrides_name([*common, f"loss={loss}", f"seed={seed}"]) for loss in ("kl", "ce") for seed in "01"]
    assert [re.sub(r"-[0-9a-f]{8}$", "", name) for name in found] == [
        f"corpus.path=python,corpus.validation=0.1,corpus=local_files,distill.general=0.1,loss={loss},seed={seed}"
        for loss in ("kl", "ce")
        for seed in "01"
    ]
    assert names.overrides_name(["model.path=org/name", "model=hf"]).startswith("model.path=name,model=hf-")
    assert names.overrides_name(["corpus.path=[/a/b,'/c/d e']"]).startswith("corpus.path=b,d_e-")
    many = [f"distill.some_key_{i}=value{i}" for i in range(5)]
    assert names.overrides_name(many).startswith("some_key_0=value0,some_key_1=value1,some_key_2=value2,some_key_3=")
    assert re.sub(r"-[0-9a-f]{8}$", "", names.overrides_name(many)).endswith(",some_key_4=value4")


def test_a_run_of_an_earlier_version_is_found_again(tmp_path: Path) -> None:
    words = ["corpus.path=/home/me/project", "corpus=local_files"]
    now = names.overrides_name(words, str(tmp_path))
    assert now == "corpus.path=project,corpus=local_files-f0ce3768"
    (tmp_path / "corpus.path=_home_me_project,corpus=local_files-f0ce3768").mkdir()
    assert names.overrides_name(words, str(tmp_path)) == "corpus.path=_home_me_project,corpus=local_files-f0ce3768"
    assert names.overrides_name(words, str(tmp_path / "elsewhere")) == now


def test_long_names_are_cut_and_stay_apart() -> None:
    long = [f"model.name={'x' * 150}{end}" for end in "ab"]
    found = [names.overrides_name([text]) for text in long]
    assert [name[:-8] for name in found] == [f"model.name={'x' * 32}-"] * 2
    assert found[0] != found[1]
    assert all(len(names.overrides_name([f"{key}{i}=1" for i in range(30)])) == 120 for key in ("a.key", "a" * 150))
    exactly = f"model.name={'x' * 109}"
    assert names.overrides_name([exactly]) == exactly


def test_a_name_is_the_same_in_every_process() -> None:
    assert names.overrides_name(["tokens.terms=my terms.txt"]) == "tokens.terms=my_terms.txt-35346307"


OVERRIDES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), max_size=5)


@given(OVERRIDES)
def test_any_name_is_one_safe_part_of_a_path(overrides: list[str]) -> None:
    name = names.overrides_name(overrides)
    assert re.fullmatch(r"[A-Za-z0-9_.,=+-]{1,120}", name)
    assert not name.startswith(".") and not name.endswith(".")
    assert names.overrides_name(overrides[::-1]) == name


@given(OVERRIDES, OVERRIDES)
def test_different_overrides_have_different_names(left: list[str], right: list[str]) -> None:
    def kept(overrides: list[str]) -> str:
        aside = tuple(names._NOT_IN_NAME)
        return ",".join(sorted(text for text in overrides if not text.lstrip("+~").startswith(aside)))

    same = kept(left) == kept(right) or {kept(left), kept(right)} == {"", "default"}
    assert (names.overrides_name(left) == names.overrides_name(right)) == same


def test_names_of_experiments() -> None:
    assert names.experiment_name(None) == "default"
    assert names.experiment_name("quickstart") == "quickstart"
    assert "/" not in names.experiment_name("mine/first")
