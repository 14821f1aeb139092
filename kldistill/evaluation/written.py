"""Stage ``write``: the original model goes on from beginnings of the domain's text, and what it writes is kept.

On text that the teacher itself wrote, and on no other, the mean of the KL loss is the KL divergence of the two models
(docs/method.md, section 4). Text is drawn from the teacher's whole distribution, at temperature 1; a special token ends
it, and so does the first token that reaches the asked size.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel

from kldistill.corpus.documents import WRITTEN, Document, Part, read_documents
from kldistill.corpus.snippets import Snippet, cut, draw
from kldistill.evaluation.config import WriteConfig
from kldistill.evaluation.generation.batching import Request, generate
from kldistill.evaluation.generation.decoding import Decoding
from kldistill.evaluation.generation.spelling import Spelling
from kldistill.model.load import load_original, load_original_tokenizer
from kldistill.runtime.devices import device_of, sizes
from kldistill.runtime.files import write_summary
from kldistill.runtime.job import Job, short_of
from kldistill.tokens.encoding import encode


def build(cfg: WriteConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Let the original model write, and keep each text with its prompt, which is not scored.

    Args:
        inputs: ``model`` and ``corpus``.
        out: gets ``written.jsonl`` (documents of two parts, named as those that their prompts come from) and
            ``summary.json``.

    Raises:
        CorpusError: the split is empty.
    """
    snippets = cut(read_documents(inputs["corpus"], cfg.split), cfg.prompt_bytes)
    prompts = draw(snippets, n=cfg.n, seed=cfg.seed)
    tokenizer = load_original_tokenizer(inputs["model"])
    model = load_original(inputs["model"], device_of(job.runtime)).eval()
    spelling = Spelling(tokenizer)
    found = sorted(_texts(cfg, prompts, model, spelling, job), key=lambda one: one.order)
    with (out / f"{WRITTEN}.jsonl").open("w", encoding="utf-8") as file:
        for one in found:
            file.write(json.dumps(one.document._asdict()) + "\n")
    if cfg.split == "test":  # the teacher tells of a share of its training text that is not met
        meaning = "It ended the others at once. The figures of written text are of these."
        short_of("eval.written", cfg.n, len(found), "texts that the original model wrote", meaning, job.say)
    figures = {
        "texts": len(found),
        "bytes": sum(one.n_bytes for one in found),
        "tokens": sum(one.n_tokens for one in found),
        "canonical": sum(one.canonical for one in found) / max(1, len(found)),
    }
    summary = {f"written/{cfg.split}/{name}": float(value) for name, value in figures.items()}
    write_summary(out, summary)
    job.log(summary)


class _Written(NamedTuple):
    """One text: the numbers of its prompt and sample, what is kept of it, its size without the prompt, and whether it
    was drawn in the tokens that the tokenizer cuts it into.
    """

    order: tuple[int, int]
    document: Document
    n_bytes: int
    n_tokens: int
    canonical: bool


def _texts(
    cfg: WriteConfig, prompts: Sequence[Snippet], model: PreTrainedModel, spelling: Spelling, job: Job
) -> Iterator[_Written]:
    """What was written, in the order in which it is done. Prompts end with the line, without its end, which the model
    writes too; each is gone on from as often as there are fewer of them than texts.
    """
    many, more = divmod(cfg.n, len(prompts))
    requests = [
        Request(snippet.text.rstrip(), cfg.n_bytes, n=many + (number < more), key=f"{cfg.split} {number}")
        for number, snippet in enumerate(prompts)
    ]
    written = generate(
        model,
        spelling,
        requests,
        Decoding(temperature=1.0, seed=cfg.seed),
        batch_size=sizes(job.runtime).generation_batch,
        description=f"Writing {cfg.split} text",
    )
    for number, completions in written:
        prompt = requests[number].prompt
        kept = spelling.healed(encode(spelling.tokenizer, [prompt])[0])[0]
        for sample, completion in enumerate(completions):
            # The last token stays whole: what was drawn is not cut short.
            text = spelling.spell(completion.token_ids)[completion.healed :].decode(errors="ignore")
            if not text:
                continue
            parts = (Part(len(prompt), scored=False), Part(len(text)))
            document = Document(prompts[number].document, prompt + text, parts)
            canonical = encode(spelling.tokenizer, [prompt + text])[0] == [*kept, *completion.token_ids]
            yield _Written((number, sample), document, len(text.encode()), completion.n_tokens, canonical)
