"""The page of a run: what it says, what it says is missing, and that nothing in it can do harm."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kldistill.report import render_run as painted
from kldistill.report.data import ReportError, read_run
from kldistill.report.run.answer import answer
from kldistill.report.run.examples import Token, cut_lines, generations, parts_of
from kldistill.report.run.new_tokens import rows
from tests.helpers.artifacts import write_tokens
from tests.helpers.paths import ROOT
from tests.helpers.report_material import HOSTILE, write_full_run, write_json, write_run
from tests.helpers.unpainted import unpainted

STYLE = ROOT / "kldistill" / "report" / "templates" / "style.css"


@pytest.fixture(scope="module")
def full_run(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every artifact, and its page."""
    model = tiny_model("llama")
    tokens = write_tokens(model, tmp_path_factory.mktemp("tokens"), 24)
    folder = write_full_run(tmp_path_factory.mktemp("experiment") / "loss=kl", model, tokens)
    painted(folder)
    return folder


def render_run(folder: Path) -> Path:
    """The page alone, its pictures blank."""
    with unpainted():
        return painted(folder)


class Page(HTMLParser):
    """Elements of a page with their attributes, its ids, and its text by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text[self._open[-1]] = self.text.get(self._open[-1], "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def ids(self) -> list[str]:
        return [str(attributes["id"]) for _, attributes in self.elements if "id" in attributes]


def test_the_answer_comes_first(full_run: Path) -> None:
    page = Page((full_run / "report.html").read_text())
    text = (full_run / "report.html").read_text()
    assert text.index("24 new tokens make held-out domain text 16.0% shorter") < text.index("What was asked")
    assert "0.800 bits per byte under the original model and 0.850 under the distilled one" in text
    assert "88% of that gap was closed" in text
    assert len(page.all("h1")) == 1


def test_every_section_has_its_content(full_run: Path) -> None:
    text = (full_run / "report.html").read_text()
    content = json.loads((full_run / "report.json").read_text())
    assert 'class="absent"' not in text
    assert "kldistill loss=kl init=subtoken_mean seed=0 logger=none" in text
    changed = {change["key"]: (change["value"], change["default"]) for change in content["changes"]}
    assert changed["loss.name"] == ("kl", "kl_ce_light")
    assert "init.input._target_" not in changed, "asked for, but the default"
    for title in (
        *("Domain text: fit against distance", "distill: training loss", "distill: validation, Bits per byte"),
        *("Probability of new tokens: student against target", "Layers", "programs"),
    ):
        assert f"<h3>{title}</h3>" in text, title
    assert "how it was judged" not in text
    assert content["verdicts"] == [
        {"suite": "programs", "model": "original", "counts": {"passed": 2, "failed": 4}},
        {"suite": "programs", "model": "distilled", "counts": {"passed": 3, "failed": 3}},
    ]
    assert [row[6] for row in content["suites"]["rows"]] == ["–", "+0.167 [-0.30,0.60]"]
    assert len(content["generations"]) == 4
    assert len(content["new_tokens"]) == 24
    assert 1 <= len(content["lines"]) <= 6
    assert "Two savings are given" in text, "16 % of what is scored, 17 % of all test documents"
    assert "distilled: 0.850 [0.81,0.89], 10 documents" in text


def test_completed_lines_show_the_tokens_that_were_written(full_run: Path) -> None:
    text = (full_run / "report.html").read_text()
    part = text[text.index("Held-out code, completed by both models") : text.index("Held-out lines, cut by both")]
    assert '<span class="token">self.</span>' in part and '<mark class="token">config</mark>' in part
    assert "extended, 2 tokens, as in the text" in part and "original, 1 tokens<" in part


def test_nothing_from_outside_becomes_markup(full_run: Path) -> None:
    text = (full_run / "report.html").read_text()
    page = Page(text)
    assert HOSTILE not in text
    assert text.count("&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;") >= 6  # tokens, documents, answers, captions
    assert page.all("img") == []
    assert len(page.all("script")) == 1
    assert "alert(2)" not in text  # the script in the stage's own figure
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_nothing_is_loaded_from_anywhere(full_run: Path) -> None:
    page = Page((full_run / "report.html").read_text())
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    assert "@import" not in page.text["style"]
    assert "url(" not in page.text["style"]
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split(";")[1]


def test_it_can_be_read_without_seeing_it(full_run: Path) -> None:
    page = Page((full_run / "report.html").read_text())
    ids = page.ids()
    assert len(ids) == len(set(ids))
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("main")) == 1
    for figure in page.all("svg"):
        assert figure["role"] == "img"
        assert figure["aria-labelledby"] in ids
    assert len(page.all("svg")) == len(page.all("figcaption")) >= 6
    assert len(page.all("table")) == len(page.all("caption"))
    for _, attributes in page.elements:
        assert all(part in ids for part in str(attributes.get("aria-labelledby", ids[0])).split())
    assert all("scope" in attributes for attributes in page.all("th"))
    for box in (attributes for attributes in page.all("div") if attributes.get("class") == "box"):
        assert (box["tabindex"], box["role"]) == ("0", "region")
    targets = [str(a["href"])[1:] for a in page.all("a") if str(a["href"]).startswith("#")]
    assert set(targets) <= set(ids)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_suffices_in_the_light_and_in_the_dark() -> None:
    blocks = re.findall(r":root \{(.*?)\}", STYLE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block))
        for text in ("ink", "muted", "link", "bad", "good"):
            for ground in ("paper", "raised"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        assert contrast(colours["mark-ink"], colours["mark"]) >= 4.5
        for line in ("vermilion", "blue", "green", "purple", "orange", "sky", "yellow", "mark-line"):
            assert contrast(colours[line], colours["paper"]) >= 3, line  # WCAG 2, 1.4.11: parts of graphics
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_lines_are_cut_by_both_tokenizers(full_run: Path) -> None:
    found = cut_lines(read_run(full_run))
    assert len({line.document for line in found}) == len(found) >= 1
    for line in found:
        assert "".join(part.text for part in line.old) == "".join(part.text for part in line.new)
        assert any(part.new for part in line.new)
        assert not any(part.new for part in line.old)
        assert len(line.new) < len(line.old)
    assert cut_lines(read_run(full_run)) == found


def test_a_character_of_several_tokens_is_shown_once() -> None:
    table = [b"a", "é".encode()[:1], "é".encode()[1:], b"bc"]
    assert parts_of([0, 1, 2, 3], table, 3) == [
        Token("a", False),
        Token("·", False),
        Token("é", False),
        Token("bc", True),
    ]


def test_generations_differ_first(full_run: Path) -> None:
    found = generations(read_run(full_run))
    assert [example.suite for example in found] == ["programs"] * 4
    verdicts = [[answer.judgement.split(":")[0] for answer in example.answers] for example in found]
    assert all(one != other for one, other in verdicts[:2])
    assert [answer.model for answer in found[0].answers] == ["original", "distilled"]
    assert found[0].prompt.startswith("def f")
    assert found[0].reference == "x"


def test_new_tokens_carry_what_is_known_of_them(full_run: Path) -> None:
    found = rows(read_run(full_run))
    assert [row.count for row in found] == sorted((row.count for row in found), reverse=True)
    by_id = sorted(found, key=lambda row: row.id)
    assert (by_id[0].n, by_id[0].nats, by_id[0].adoption) == (0, None, None)
    assert (by_id[5].held_out, by_id[5].n, by_id[5].nats) == (10, 5, 4.5)
    assert "".join(by_id[5].pieces) == by_id[5].string
    assert by_id[3].string == HOSTILE


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "x" / "y", "kl", "mean", 0, bits=0.9, kl=0.3)
    content = json.loads((folder / "run.json").read_text())
    content["artifacts"] = {"interpret": "../gone", "tokens": "../gone"}
    content["metrics"] = {key: value for key, value in content["metrics"].items() if not key.startswith("eval/")}
    write_json(folder / "run.json", content)
    assert render_run(folder) == folder / "report.html"
    text = (folder / "report.html").read_text()
    for stage in ("tokens", "evaluate", "interpret"):
        assert f"The stage <code>{stage}</code> did not run" in text
    assert "Nothing was trained." in text
    assert "No suite of tasks was run" in text


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "x", "kl", "mean", 0, bits=0.9, kl=0.3, status="failed")
    text = render_run(folder).read_text()
    assert "<strong>This run failed.</strong> TrainingError: the loss is not finite" in text
    write_run(folder, "kl", "mean", 0, bits=0.9, kl=0.3, status="running")
    assert "This run has not ended" in render_run(folder).read_text()


@pytest.mark.parametrize("step", [0.0, 40.0])
def test_training_that_was_nowhere_better_than_its_start_is_a_warning(step: float, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "x", "kl", "mean", 0, bits=0.9, kl=0.3)
    content = json.loads((folder / "run.json").read_text())
    content["metrics"]["distill/best_step"] = step
    write_json(folder / "run.json", content)
    warned = "<code>distill</code> was at no step better on validation text" in render_run(folder).read_text()
    assert warned is (step == 0)


def test_no_run_no_page(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"no run\.json in it"):
        render_run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_secrets_stay_out(full_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "local-0123456789abcdef"
    folder = write_run(tmp_path / "x", "kl", "mean", 0, bits=0.9, kl=0.3)
    content = json.loads((folder / "run.json").read_text())
    content["config"]["model"] = {"path": f"https://user:{secret}@host/model"}
    write_json(folder / "run.json", content)
    write_json(folder / ".hydra" / "overrides.yaml", [f"model.path=https://user:{secret}@host/model"])
    monkeypatch.setenv("WANDB_API_KEY", secret)
    render_run(folder)
    for name in ("report.html", "report.json"):
        text = (folder / name).read_text()
        assert secret not in text
        assert "WANDB_API_KEY" in text


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        ((0.8, 1.2, 0.9), "before training it was 1.200, so 75% of that gap was closed."),
        ((0.8, 1.2, 0.7), "which is no more; before training it was 1.200."),
        ((0.8, 0.7, 0.7), "before training it was 0.700."),
    ],
)
def test_the_answer_fits_the_figures(tmp_path: Path, bits: tuple[float, float, float], said: str) -> None:
    run = read_run(write_run(tmp_path, "kl", "mean", 0, bits=0.9, kl=0.3))
    for of, value in zip(("original", "init", "distilled"), bits, strict=True):
        run.metrics[f"eval/{of}/domain/bits_per_byte"] = value  # type: ignore[index]
    assert said in answer(run.metrics)


def test_the_answer_of_a_run_without_new_tokens(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, "kl", "mean", 0, bits=0.9, kl=0.3))
    run.metrics["tokens/added"] = 0  # type: ignore[index]
    assert answer(run.metrics).startswith("Domain text costs 0.800 bits per byte under the original model and 0.900")


def test_the_answer_says_what_general_text_lost(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, "kl", "mean", 0, bits=0.9, kl=0.3))
    run.metrics.update(  # type: ignore[attr-defined]
        {f"eval/{of}/general/bits_per_byte": value for of, value in (("original", 1.1), ("distilled", 1.25))}
        | {f"eval/distilled/{of}/kl_to_teacher": value for of, value in (("domain", 0.3), ("general", 0.04))}
    )
    assert answer(run.metrics).endswith(
        " General text costs 1.100 and 1.250; the distilled model is 0.300 nats a position from the original on "
        "domain text, 0.040 on it."
    )
