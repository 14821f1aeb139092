"""Step ``chat``: the conversations of a corpus, rendered with the model's own chat template.

The special tokens that the template writes become special tokens (see ``kldistill.corpus.documents.Part``). Their
spelling in a message stays text, as everywhere: it is put out of the template's sight while it renders.
"""

import itertools
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from kldistill.corpus.config import CorpusConfig, HfDatasetCorpus
from kldistill.corpus.documents import (
    DOMAIN_SPLITS,
    SPLITS,
    Document,
    Part,
    has_split,
    line_of,
    read_documents,
    reasons,
    spoken,
)
from kldistill.model.load import load_original_tokenizer
from kldistill.runtime.errors import CorpusError, ModelError
from kldistill.runtime.files import write_summary
from kldistill.runtime.job import Job
from kldistill.runtime.progress import track
from kldistill.tokens.encoding import first_token

# Its declared types leave out the settings of a template, and are wrong of what it gives back.
render_jinja_template: Any = chat_template_utils.render_jinja_template
# Characters that stand for special tokens in messages while a template renders: private ones, no white space.
_PRIVATE = (0xF0000, 0x100000)
_HERE = "\U0010f000"  # another one, in place of what an answer says
_GENERATION = re.compile(r"\{%-?\s*generation\b")  # a template that says itself what answers are
REFUSED, UNMARKED, PRIVATE = "refused_by_template", "answers_not_found", "private_characters"


def build(cfg: CorpusConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Write the corpus once more, its conversations rendered.

    Args:
        cfg: says whether answers alone are scored.
        inputs: ``model`` and ``corpus``.
        out: gets the splits of the corpus and ``summary.json``. General texts are the same.

    Raises:
        CorpusError: the template renders none of the conversations of a split.
        ModelError: the model has no chat template.
    """
    assert isinstance(cfg, HfDatasetCorpus)
    check_model(cfg, inputs["model"])
    template = Template(load_original_tokenizer(inputs["model"]), cfg.answers_only)
    figures: dict[str, float] = {}
    left_out: Counter[str] = Counter()
    for split in SPLITS:
        if not has_split(inputs["corpus"], split):
            continue
        if split not in DOMAIN_SPLITS:
            shutil.copyfile(inputs["corpus"] / f"{split}.jsonl", out / f"{split}.jsonl")
            continue
        counts: Counter[str] = Counter()
        documents = read_documents(inputs["corpus"], split)
        with (out / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for document in track(documents, f"Rendering {split} conversations", len(documents), "documents"):
                rendered = template.render(document)
                if isinstance(rendered, str):
                    left_out[rendered] += 1
                    continue
                file.write(line_of(rendered))
                counts += Counter(documents=1, bytes=len(rendered.text.encode()))
                counts["special_tokens"] += sum(bool(part.special) for part in rendered.parts)
                runs = spoken(rendered.text, rendered.parts)
                counts["scored_bytes"] += sum(len(run.encode()) for part, run in runs if part.scored)
        if not counts["documents"]:
            raise CorpusError(_nothing(split, left_out))
        names = ("documents", "bytes", "scored_bytes", "special_tokens")
        figures |= {f"chat/{split}/{name}": counts[name] for name in names}
    figures |= {f"chat/skipped/{reason}": number for reason, number in sorted(left_out.items())}
    write_summary(out, figures)
    job.log(figures)
    share = figures["chat/train/scored_bytes"] / figures["chat/train/bytes"]
    job.say(f"Conversations rendered with the model's chat template; {share:.0%} of their text is trained on.")
    if left_out:
        job.say(f"Conversations left out: {reasons(left_out)}.")


def check_model(cfg: CorpusConfig, model: Path) -> None:
    """Refuse a model without a chat template. Raises ``ModelError``."""
    if not load_original_tokenizer(model).chat_template:
        raise ModelError(
            "corpus.messages_field: this model's tokenizer has no chat template to render conversations with. Choose "
            "an instruct model, or put a chat_template.jinja into the folder of the model (model=hf "
            "model.path=FOLDER)."
        )


def _nothing(split: str, left_out: Counter[str]) -> str:
    advice = ""
    if left_out[UNMARKED]:
        advice = (
            " Where a template changes earlier turns when more follow, answers are found only if it marks them "
            "({% generation %}), or in conversations of one answer; or set corpus.answers_only=false."
        )
    why = reasons(left_out) or "there are none"
    return f"The model's chat template renders none of the {split} conversations ({why}).{advice}"


class Template:
    """A tokenizer's chat template.

    Args:
        tokenizer: the original one.
        answers_only: what is not said by ``assistant`` is not scored.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, answers_only: bool) -> None:
        self.answers_only = answers_only
        self._template: str = tokenizer.get_chat_template()
        self._known = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        self._first = str(tokenizer.convert_ids_to_tokens(first_token(tokenizer)))
        self._special = {token.content: token for token in tokenizer.added_tokens_decoder.values() if token.special}
        longest_first = sorted(self._special, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def render(self, document: Document) -> Document | str:
        """A conversation as text with its parts, or the reason, in one word, why it is left out."""
        written = "".join(_strings(document.messages))
        base = next((base for base in _PRIVATE if not any(base <= ord(c) < base + 0x1000 for c in written)), None)
        if base is None:
            return PRIVATE
        hidden = {special: chr(base + number) for number, special in enumerate(self._special)}
        messages = _mapped(document.messages, lambda text: self._pattern.sub(lambda found: hidden[found[0]], text))
        try:
            rendered, answers = self._rendered(messages)
        except (TemplateError, TypeError, KeyError, ValueError):
            return REFUSED
        if answers is None:
            return UNMARKED
        shown = {ord(private): special for special, private in hidden.items()}
        text, parts = self._parts(rendered, answers, shown)
        return Document(document.id, text, tuple(parts))

    def _rendered(self, messages: Sequence[dict[str, Any]]) -> tuple[str, list[tuple[int, int]] | None]:
        """The conversation as the template writes it, and where its answers stand; None where that cannot be said."""
        if self.answers_only and _GENERATION.search(self._template):
            (rendered,), (answers,) = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self._template,
                return_assistant_tokens_mask=True,
                **self._known,
            )
            return rendered, list(answers)
        rendered = self._text(messages)
        if not self.answers_only:
            return rendered, [(0, len(rendered))]
        answers = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, asked = (self._text(messages[:number], add_generation_prompt=asked) for asked in (False, True))
            after = self._text(messages[: number + 1])
            if not rendered.startswith(after):  # some templates end with a special token, wherever that is (Phi-3)
                last = self._closing(after)
                after = after[: last.start()] if last else after
            if not after.startswith(asked) or not rendered.startswith(after):
                return rendered, None
            start = len(asked)
            if asked == before:  # the template has no prompt for an answer
                header, found, _ = self._text([*messages[:number], {**message, "content": _HERE}]).partition(_HERE)
                # White space alone is what the model has to write (Llama 2, Mistral).
                if found and after.startswith(header) and header[start:].strip():
                    start = len(header)
            answers.append((start, self._end(after, start)))
        return rendered, answers

    def _text(self, messages: Sequence[dict[str, Any]], **settings: Any) -> str:
        if not messages:
            return ""
        rendered, _ = render_jinja_template(
            conversations=[list(messages)], chat_template=self._template, **settings, **self._known
        )
        return rendered[0]

    def _end(self, rendered: str, start: int) -> int:
        """Where an answer ends: after the special token that ends the turn, if there is one, or else with the turn."""
        last = self._closing(rendered, start)
        return last.end() if last else len(rendered)

    def _closing(self, rendered: str, start: int = 0) -> re.Match[str] | None:
        """The last special token, where nothing is behind it but white space."""
        found = list(self._pattern.finditer(rendered, start))
        return found[-1] if found and not rendered[found[-1].end() :].strip() else None

    def _parts(
        self, rendered: str, answers: Sequence[tuple[int, int]], shown: Mapping[int, str]
    ) -> tuple[str, list[Part]]:
        """The text without its special tokens, and its parts.

        Args:
            answers: where answers stand in ``rendered``.
            shown: the spellings of special tokens in messages, by the characters that stand for them.
        """
        cuts = {0, len(rendered), *(place for answer in answers for place in answer)}
        specials = {found.start(): found[0] for found in self._pattern.finditer(rendered)}
        cuts |= {place for start, special in specials.items() for place in (start, start + len(special))}
        texts: list[str] = []
        parts: list[Part] = []
        strip = False  # white space that belongs to the special token before it
        for start, end in itertools.pairwise(sorted(cuts)):
            scored = any(first <= start and end <= last for first, last in answers)
            if special := specials.get(start):
                if self._special[special].lstrip and texts and not parts[-1].special:
                    texts[-1] = texts[-1].rstrip()
                    parts[-1] = parts[-1]._replace(length=len(texts[-1]))
                strip = self._special[special].rstrip
                if parts or special != self._first:  # the first token of a text is set wherever one is read
                    parts.append(Part(0, special, scored))
                    texts.append("")
                continue
            text = rendered[start:end].translate(shown)
            text, strip = (text.lstrip() if strip else text), False
            if text:
                parts.append(Part(len(text), "", scored))
                texts.append(text)
        kept = [part for part in parts if part.special or part.length]
        return "".join(texts), kept


def _strings(node: Any) -> Iterator[str]:
    """All texts of some messages."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _strings(value)
    elif isinstance(node, Sequence):
        for value in node:
            yield from _strings(value)


def _mapped(node: Any, change: Any) -> Any:
    """The same messages with every text changed."""
    if isinstance(node, str):
        return change(node)
    if isinstance(node, Mapping):
        return {name: _mapped(value, change) for name, value in node.items()}
    return [_mapped(value, change) for value in node] if isinstance(node, Sequence) else node
