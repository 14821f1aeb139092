"""Conversations: the template's special tokens are special, and what is scored is exactly what the assistant says."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from kldistill.corpus.config import HfDatasetCorpus
from kldistill.corpus.documents import Document, Part, read_documents
from kldistill.corpus.snippets import Snippet, cut, fit
from kldistill.corpus.sources import conversation, hf_dataset
from kldistill.losses import ce, kl
from kldistill.losses.alignment import align
from kldistill.losses.chunks import only
from kldistill.model import tiny
from kldistill.model.load import load_original_tokenizer
from kldistill.pipeline import compose
from kldistill.pipeline.run import run_pipeline
from kldistill.runtime.errors import ConfigError, CorpusError, ModelError
from kldistill.runtime.job import Job
from kldistill.tokens import chat
from kldistill.tokens.artifact import load_extended_tokenizer
from kldistill.tokens.chat import REFUSED, UNMARKED, Template
from kldistill.tokens.definition import token_bytes
from kldistill.tokens.encoding import encode_snippets, special_ids
from kldistill.tokens.pieces import PieceTable
from kldistill.training import states
from kldistill.training.cuts import TwoCuts, starts_of
from kldistill.training.states import States, scored_rows
from tests.helpers import runs
from tests.helpers.artifacts import MakeModel, MakeTokens

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (  # as Llama-3's: the first token in front, contents without white space around
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|h|>' + m.role + '<|/h|>\n\n' + m.content|trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|h|>assistant<|/h|>\n\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A: {% generation %}{{ m.content + eos_token }}"
    "{% endgeneration %}\n{% else %}{{ m.role + ': ' + m.content + '\n' }}{% endif %}{% endfor %}"
)
BRACKETS = (  # as Llama-2's
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "marked": MARKED, "brackets": BRACKETS, "plain": tiny.CHAT_TEMPLATE}
KINDS = ["gpt2", "llama3", "qwen2", "llama2", "gemma"]
TALK = (
    {"role": "user", "content": "How do I parse arguments?"},
    {"role": "assistant", "content": "  Use parser.parse_args() and read\nthe namespace.\n"},
    {"role": "user", "content": "And a <|im_end|> or </s> in them?"},
    {"role": "assistant", "content": "Is text: 'é <|im_start|>'"},
)
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|h|>", "<|/h|>", "<|eot|>"]


def tokenizer_of(kind: str, template: str) -> PreTrainedTokenizerFast:
    made = tiny.sentencepiece_style(kind, 512) if kind in tiny.SENTENCEPIECE else tiny.byte_level(kind, 512)
    made.add_special_tokens({"extra_special_tokens": SPECIALS})
    made.chat_template = TEMPLATES[template]
    return made


def talk(*messages: dict[str, Any]) -> Document:
    document = conversation("row", list(messages))
    assert isinstance(document, Document)
    return document


def rendered(tokenizer: PreTrainedTokenizerFast, document: Document, answers_only: bool) -> Document:
    found = Template(tokenizer, answers_only).render(document)
    assert isinstance(found, Document), found
    return found


def snippet_of(document: Document) -> Snippet:
    return Snippet(document.id, document.text, document.parts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_ids_are_those_of_transformers(kind: str, template: str) -> None:
    """Without a special token's spelling in what is said, transformers' own ids are right."""
    tokenizer = tokenizer_of(kind, template)
    messages = [message | {"content": message["content"].replace("<|", "<").replace("</s>", "s")} for message in TALK]
    (found,) = encode_snippets(tokenizer, [snippet_of(rendered(tokenizer, talk(*messages), answers_only=False))])
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = [] if ids[0] == tokenizer.bos_token_id else [tokenizer.bos_token_id]
    assert found.ids == start + ids
    assert sum(found.sizes) == len(found.ids) - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_only_the_template_sets_special_tokens(kind: str, template: str) -> None:
    tokenizer = tokenizer_of(kind, template)
    document = rendered(tokenizer, talk(*TALK), answers_only=False)
    (found,) = encode_snippets(tokenizer, [snippet_of(document)])
    special = special_ids(tokenizer)
    said = [part.special for part in document.parts if part.special]
    assert [tokenizer.convert_ids_to_tokens(i) for i in found.ids[1:] if i in special] == said
    assert len(said) == {"chatml": 8, "headers": 12, "marked": 2, "brackets": 3, "plain": 0}[template]
    for spelt in ("a <|im_end|> or </s> in", "<|im_start|>'"):
        assert spelt in document.text, "text that was said stays, with what it spells"
    assert document.text == "".join(document.runs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_what_is_scored_is_what_the_assistant_says(kind: str, template: str) -> None:
    """On the bytes of the text, by the tokens of each scored row; a turn's end is scored with it."""
    tokenizer = tokenizer_of(kind, template)
    document = rendered(tokenizer, talk(*TALK), answers_only=True)
    end = {"chatml": "<|im_end|>", "headers": "<|eot|>", "plain": "\n"}.get(template, tokenizer.eos_token)
    space = " " if template == "brackets" else ""
    trim = template == "headers"
    answers = [m["content"].strip() if trim else m["content"] for m in TALK if m["role"] == "assistant"]
    # Without a prompt for answers the template's own blank before one is the model's to write.
    answers = [f"{space}{answer}" for answer in answers]
    (found,) = encode_snippets(tokenizer, [snippet_of(document)])
    rows = scored_rows(snippet_of(document), found.sizes)
    assert rows is not None
    table = token_bytes(tokenizer)
    scored = b"".join(table[found.ids[row + 1]] for row in rows.tolist())
    assert scored.decode() == "".join(f"{answer}{space}{end}" for answer in answers)
    expected = sum(len(f"{answer}{space}".encode()) for answer in answers) + (2 if end == "\n" else 0)
    assert snippet_of(document).scored_bytes == expected


def scored_of(tokenizer: PreTrainedTokenizerFast, *messages: dict[str, str]) -> list[list[int]]:
    """The ids that are scored, a run of neighbours each."""
    part = snippet_of(rendered(tokenizer, talk(*messages), answers_only=True))
    (found,) = encode_snippets(tokenizer, [part])
    rows = scored_rows(part, found.sizes)
    assert rows is not None
    runs: list[list[int]] = []
    for before, row in zip([-2, *rows.tolist()], rows.tolist(), strict=False):
        runs += [[]] if row != before + 1 else []
        runs[-1].append(found.ids[row + 1])
    return runs


def test_an_answer_after_a_bracket_is_cut_as_the_model_writes_it() -> None:
    """Llama 2 writes the blank and the first word as one token, right after the closing bracket."""
    tokenizer = tokenizer_of("llama3", "brackets")
    (ids,) = scored_of(tokenizer, {"role": "user", "content": "q"}, {"role": "assistant", "content": "return it"})
    assert ids[:-1] == tokenizer(" return it ", add_special_tokens=False)["input_ids"]


def test_a_short_answer_is_not_looked_for_in_the_name_of_its_role() -> None:
    tokenizer = tokenizer_of("gpt2", "plain")
    (ids,) = scored_of(tokenizer, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})
    assert tokenizer.decode(ids).strip() == "a"


def test_an_answer_that_the_template_does_not_write_begins_after_the_prompt() -> None:
    tokenizer = tokenizer_of("gpt2", "plain")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.shown + '\n' }}{% endfor %}"
    talks = ({"role": "user", "content": "", "shown": "q"}, {"role": "assistant", "content": "a", "shown": "b"})
    (ids,) = scored_of(tokenizer, *talks)
    assert tokenizer.decode(ids) == "assistant: b\n"


def test_a_template_that_ends_with_a_special_token_loses_no_conversation() -> None:
    """Phi-3 puts one at the end of whatever has no prompt for an answer, so the first turns are no prefix of all."""
    tokenizer = tokenizer_of("gpt2", "chatml")
    tokenizer.chat_template = CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    first, second = scored_of(tokenizer, *TALK)
    assert tokenizer.decode(first) == TALK[1]["content"] + "<|im_end|>"
    assert tokenizer.decode(second).startswith("Is text: 'é ") and tokenizer.decode(second).endswith(
        tokenizer.eos_token
    )


def test_both_tokenizations_score_the_same_bytes(tiny_model: MakeModel, fake_tokens: MakeTokens) -> None:
    model = tiny_model("qwen2")
    old, new = load_original_tokenizer(model), load_extended_tokenizer(tokens := fake_tokens(model))
    pieces = PieceTable.load(tokens)
    document = rendered(old, talk(*TALK, {"role": "user", "content": "x"}), answers_only=True)
    snippet = snippet_of(document)
    (of_old,), (of_new,) = encode_snippets(old, [snippet]), encode_snippets(new, [snippet])
    assert max(of_new.ids) >= pieces.old_size and pieces.expand(of_new.ids) == of_old.ids
    rows = [scored_rows(snippet, one.sizes) for one in (of_old, of_new)]
    assert rows[0] is not None and rows[1] is not None
    assert pieces.expand([of_new.ids[row + 1] for row in rows[1].tolist()]) == [
        of_old.ids[row + 1] for row in rows[0].tolist()
    ]
    # What is scored and the rest are together all: sums of losses, positions, and contexts of the KL.
    whole = align(of_old.ids, of_new.ids, pieces, starts_of(snippet, of_new.sizes))
    mask = torch.zeros(len(of_new.ids) - 1, dtype=torch.bool)
    mask[rows[1]] = True
    parts = [only(whole, torch.nonzero(chosen)[:, 0]) for chosen in (mask, ~mask)]
    assert [part.n_next for part in parts] == [int(mask.sum()), int((~mask).sum())] and 0 < mask.sum() < len(mask)
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(len(of_new.ids), pieces.new_size, generator=generator)
    teacher = torch.randn(len(of_old.ids), pieces.old_size, generator=generator)
    sums = [[ce(student, part) * part.n_next, kl(student, teacher, part) * part.n_common] for part in (*parts, whole)]
    for one, other, both in zip(*sums, strict=True):
        torch.testing.assert_close(one + other, both)
    cuts = TwoCuts.of(States.of([snippet], [of_old]), new, pieces)
    torch.testing.assert_close(ce(student, cuts.alignment(0)), ce(student, parts[0]))
    log_p = student.log_softmax(-1)
    expected = -sum(log_p[row, of_new.ids[row + 1]] for row in rows[1].tolist()) / len(rows[1])
    torch.testing.assert_close(ce(student, parts[0]), expected)


def test_nothing_is_ruled_out_where_an_answer_begins(tiny_model: MakeModel, fake_tokens: MakeTokens) -> None:
    """A prompt and its answer that would be one new token together are two, and the target allows that."""
    model = tiny_model("gpt2")
    tokens = fake_tokens(model)
    pieces = PieceTable.load(tokens)
    left, right = next(row for row in pieces.pieces if len(row) == 2)
    first = load_original_tokenizer(model).bos_token_id
    old = new = [first, left, right, left]
    ruled_out = align(old, new, pieces)
    assert right in ruled_out.zero_piece[ruled_out.zero_position == 1].tolist()
    assert not len((free := align(old, new, pieces, starts={2})).zero_piece[free.zero_position == 1])
    assert free.n_contradictions < ruled_out.n_contradictions


def test_snippets_keep_their_parts() -> None:
    tokenizer = tokenizer_of("qwen2", "chatml")
    document = rendered(tokenizer, talk(*TALK * 6), answers_only=False)
    for size in (20, 60, 200):
        snippets = list(cut([document], size))
        assert "".join(snippet.text for snippet in snippets) == document.text and len(snippets) > 2
        for snippet in snippets:
            assert sum(part.length for part in snippet.parts) == len(snippet.text)
        flat = [part for snippet in snippets for part in snippet.parts]
        assert [part.special for part in flat if part.special] == [p.special for p in document.parts if p.special]
        halves = fit(snippets, lambda snippet: len(encode_snippets(tokenizer, [snippet])[0].ids), 30)
        assert all(len(one.ids) <= 30 for one in encode_snippets(tokenizer, halves))
        assert "".join(snippet.text for snippet in halves) == document.text
    answers = rendered(tokenizer, talk(*TALK * 6), answers_only=True)
    assert all(snippet.scored_bytes or any(p.scored for p in snippet.parts) for snippet in cut([answers], 20))
    assert sum(snippet.scored_bytes for snippet in cut([answers], 20)) == snippet_of(answers).scored_bytes


def test_white_space_that_a_special_token_swallows_is_no_text() -> None:
    tokenizer = tokenizer_of("llama2", "chatml")
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [*SPECIALS, AddedToken("<|end|>", rstrip=True, lstrip=True, special=True)]}
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + ' <|end|> \n' }}{% endfor %}"
    document = rendered(
        tokenizer, talk({"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}), False
    )
    assert document.text == "a bc"
    assert document.parts == (Part(3), Part(0, "<|end|>"), Part(1), Part(0, "<|end|>"))


def test_conversations_that_cannot_be_rendered_are_left_out() -> None:
    tokenizer = tokenizer_of("qwen2", "plain")
    tokenizer.chat_template = "{% if messages[0].role != 'user' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    assert Template(tokenizer, False).render(talk(TALK[1])) == REFUSED
    # As Qwen3's: what was thought is dropped once more follows, so the answer alone is not the answer in the whole.
    tokenizer.chat_template = CHATML.replace("m.content", "(m.content if loop.last else m.content.split('think')[-1])")
    thought = {"role": "assistant", "content": "I think that it is 3"}
    assert Template(tokenizer, True).render(talk(TALK[0], thought, TALK[2])) == UNMARKED
    assert isinstance(Template(tokenizer, True).render(talk(TALK[0], thought)), Document)


def rows_of(path: Path, talks: Sequence[Sequence[dict[str, Any]]]) -> Path:
    path.write_text("".join(json.dumps({"messages": list(one)}) + "\n" for one in talks))
    return path


def test_messages_are_read_from_a_dataset(tmp_path: Path) -> None:
    path = rows_of(tmp_path / "chats.jsonl", [TALK, [{"role": "user", "content": "a\r\nb"}], [{"role": "user"}], []])
    found = list(hf_dataset("json", data_files=[str(path)], messages_field="messages", streaming=True).read())
    assert [document.messages for document in found[:2]] == [TALK, ({"role": "user", "content": "a\nb"},)]
    assert found[0].text == "\n\n".join(message["content"] for message in TALK)
    assert [skipped.reason for skipped in found[2:]] == ["no_messages"] * 2
    with pytest.raises(CorpusError, match=r"corpus\.messages_field='chat'.*messages"):
        list(hf_dataset("json", data_files=[str(path)], messages_field="chat").read())
    with pytest.raises(ConfigError, match=r"corpus\.answers_only"):
        node = {"_target_": "x"}
        HfDatasetCorpus(source=node, general=node, path="json", answers_only=True)


def test_a_model_without_a_template_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    tokenizer = load_original_tokenizer(tiny_model("gpt2"))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "model.json").write_text((tiny_model("gpt2") / "model.json").read_text())
    (tmp_path / "config.json").write_text((tiny_model("gpt2") / "config.json").read_text())
    node = {"_target_": "x"}
    cfg = HfDatasetCorpus(source=node, general=node, path="json", messages_field="messages")
    with pytest.raises(ModelError, match=r"corpus\.messages_field.*no chat template"):
        chat.build(cfg, {"model": tmp_path, "corpus": tmp_path}, tmp_path, Job())


@pytest.mark.parametrize("answers_only", [False, True])
def test_a_run_on_conversations(tmp_path: Path, answers_only: bool) -> None:
    files = runs.write_corpus(tmp_path / "files")
    sources = [path.read_text() for path in sorted(files.glob("*.py"))]
    asked = {"role": "user", "content": "Show me a function."}
    talks = [[asked, {"role": "assistant", "content": source}, asked] for source in sources]
    path = rows_of(tmp_path / "chats.jsonl", talks)
    chosen = [word for word in runs.SMALL if not word.startswith("corpus=")]
    chosen += ["corpus=chat", "corpus.path=json", f"corpus.data_files=[{path}]", f"corpus.answers_only={answers_only}"]
    more = ["stages=[evaluate,interpret]", "finetune=rows", "finetune.steps=2", "eval.suites=[]"]
    outputs = tmp_path / "outputs"
    with runs.undrawn():
        run_pipeline(compose.typed(runs.config([*chosen, *more, f"outputs={outputs}"])), outputs / "runs" / "run")
    found = runs.read_run(outputs / "runs" / "run")
    assert found["status"] == "finished"
    folder = {name: outputs / "runs" / "run" / place for name, place in found["artifacts"].items()}
    documents = list(read_documents(folder["chat"], "train"))
    assert documents and all(document.parts for document in documents)
    assert all("user: Show me a function.\n" in document.text for document in documents)
    figures = found["metrics"]
    assert (figures["chat/train/scored_bytes"] < figures["chat/train/bytes"]) == answers_only
    assert figures["eval/distilled/domain/bits_per_byte"] > 0 and figures["eval/finetuned/domain/kl_to_teacher"] > 0
    read = states.read(folder["evaluate_original"], "domain")
    assert figures["eval/original/domain/bytes"] == sum(snippet.scored_bytes for snippet in read.snippets)
    asks = [part for snippet in read.snippets for part in snippet.parts if not part.scored]
    assert bool(asks) == answers_only
