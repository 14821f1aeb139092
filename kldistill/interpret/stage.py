"""The stage's steps: read text, have the models run over it, measure, write.

The processes of a run share what runs the models: contexts for the passes and the attention, uses for the logit lens,
lines to complete. All of them have the same text, and each holds the models; the main one measures the rest and writes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kldistill.corpus.documents import read_documents
from kldistill.interpret import agreement, attention, completions, geometry, lens, pictures, reliability
from kldistill.interpret.config import InterpretConfig
from kldistill.interpret.contexts import Context, Rival, Use, draw_rivals, draw_uses, read
from kldistill.interpret.headline import Headline, headline
from kldistill.interpret.models import STUDENTS, Models
from kldistill.interpret.passes import Parts, States, run_all
from kldistill.model.load import load_original_config, vocabulary_size
from kldistill.rows.rows import Rows
from kldistill.rows.student import embedding_of, head_of
from kldistill.runtime.devices import accelerator
from kldistill.runtime.errors import ModelError
from kldistill.runtime.files import write_summary
from kldistill.runtime.job import Job, short_of
from kldistill.runtime.progress import Bar
from kldistill.runtime.shares import Share
from kldistill.tokens.artifact import NewToken, read_new_tokens
from kldistill.tokens.windows import context_length
from kldistill.training.load import load_tokenizer

RIVALS = 8  # of each use at most
INEXACT = "some new tokens are AddedTokens, which have no exact pieces"


def build(cfg: InterpretConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """See ``kldistill.interpret.build``."""
    accelerate = accelerator(job.runtime, "no")
    share = Share.of(accelerate, job.runtime)
    old_tokenizer = load_tokenizer(inputs["model"], None)
    new_tokenizer = load_tokenizer(inputs["model"], inputs["tokens"])
    config = load_original_config(inputs["model"])
    documents = read_documents(inputs["corpus"], "test")
    old_size = vocabulary_size(inputs["model"])
    # Lines first: two models complete them, and are let go of before those are loaded that are compared. A token has a
    # byte or more, so half of what the model takes is left for the line.
    before = int(min(completions.PROMPT_BYTES, context_length(config) // 2))
    lines = completions.draw(documents, new_tokenizer, old_size, cfg.completions, cfg.seed, before)
    if lines:
        tokenizers = {"original": old_tokenizer, "extended": new_tokenizer}
        completions.write(out / "completions.jsonl", lines, inputs, tokenizers, old_size, job, share)
    made = Models.load(inputs, accelerate.device)
    contexts = read(
        documents, old_tokenizer, new_tokenizer, made.pieces,
        n=cfg.n_contexts, size=cfg.context_bytes, seed=cfg.seed, config=config,
    )  # fmt: skip
    uses = draw_uses(contexts, cfg.n_uses, cfg.seed)
    if len(uses) < 2:
        if share.main:  # a small project's test split may have none, which is no reason to withhold the model
            write_summary(out, {})
            job.say(
                f"Warning: interpret: nothing is explained, as the test split has {len(uses)} uses of new tokens, and "
                "two are needed: the corpus has too little text."
            )
        return
    records = read_new_tokens(inputs["tokens"])
    more = "More text, or a larger corpus.test, gives more."
    short_of("interpret.n_contexts", cfg.n_contexts, len(contexts), "held-out snippets with new tokens", more, job.say)
    if len(contexts) == cfg.n_contexts:
        what = "uses of new tokens in the contexts"
        short_of("interpret.n_uses", cfg.n_uses, len(uses), what, "More interpret.n_contexts give more.", job.say)
    short_of("interpret.neighbours", cfg.neighbours, len(records), "new tokens", "All are listed.", job.say)
    short_of("interpret.completions", cfg.completions, len(lines), "held-out lines to complete", more, job.say)
    head = Headline([contexts[use.context].document for use in uses])
    report: dict[str, Any] = {"contexts": _of_text(contexts, uses), "left_out": {}}

    def name(token: int) -> str:
        return str(old_tokenizer.decode([token])) if token < old_size else records[token - old_size].string

    def attempt(what: str, reason: str | None, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure, or say why it cannot be done with this model or these tokens."""
        if reason is None:
            try:
                report.update(measure())
                return
            except ModelError as error:
                reason = str(error)
        report["left_out"][what] = reason
        job.say(f"interpret: {what} is left out: {reason}")

    inexact = None if made.pieces.exact else INEXACT
    rivals = draw_rivals(contexts, uses, RIVALS, cfg.seed)
    states, parts = run_all(made, contexts, uses, rivals, share)
    tokens: dict[int, dict[str, Any]] = {}
    if share.main:
        attempt("calibration", inexact, lambda: _calibration(made, contexts, parts, head, tokens))
        attempt("agreement", made.unreadable, lambda: _agreement(states, uses, rivals, head))
    attempt("lens", made.unreadable or inexact, lambda: _lens(made, states, uses, head, share))
    states.clear()
    whole = [context for context in contexts if attention.usable(context)][: cfg.attention_contexts]
    if whole:
        what = "contexts that are cut at common boundaries throughout"
        wanted, given = cfg.attention_contexts, "More interpret.n_contexts give more."
        short_of("interpret.attention_contexts", wanted, len(whole), what, given, job.say)
    none = "interpret.attention_contexts=0" if not cfg.attention_contexts else "no context is cut at common boundaries"
    attempt("attention", None if whole else none, lambda: _attention(made, whole, share))
    points: dict[str, Any] = {}
    if share.main:
        attempt("geometry", inexact, lambda: _geometry(cfg, made, records, name, points))
    if not share.main:
        return

    _write_json(out / "interpret.json", report)
    with (out / "new_tokens.jsonl").open("w", encoding="utf-8") as file:
        for record in records:
            shown = {"id": record.id, "string": record.string, "pieces": [name(id) for id in record.pieces]}
            measured = tokens.get(record.id, {"n": 0})
            file.write(json.dumps({**shown, "count": record.count, **measured}, ensure_ascii=False) + "\n")
    _write_json(out / "pictures.json", pictures.draw(report, points, out))
    summary = headline(report, head)
    write_summary(out, summary)
    job.log(summary)


def _of_text(contexts: Sequence[Context], uses: Sequence[Use]) -> dict[str, int]:
    return {
        "n": len(contexts),
        "documents": len({context.document for context in contexts}),
        "bytes": sum(len(context.text.encode()) for context in contexts),
        "old_tokens": sum(len(context.old_ids) for context in contexts),
        "new_tokens": sum(len(context.new_ids) for context in contexts),
        "uses": sum(len(context.uses(0)) for context in contexts),
        "drawn_uses": len(uses),
        "distinct_tokens": len({use.token for use in uses}),
    }


def _calibration(
    made: Models,
    contexts: Sequence[Context],
    parts: Sequence[Parts],
    head: Headline,
    tokens: dict[int, dict[str, Any]],
) -> dict[str, Any]:
    """Masses against their targets, and the KL, at every common boundary; fills ``tokens`` for the trained model."""
    documents = [context.document for context in contexts for _ in range(context.alignment.n_common)]
    by_model = {}
    for name in STUDENTS:
        positions, cells = reliability.join([one[name] for one in parts])
        by_model[name] = reliability.summarise(positions, cells, made.pieces.old_size)
        head.add_calibration(name, positions, documents, made.pieces.old_size)
        if name == "trained":
            tokens.update(reliability.by_token(positions, made.pieces.old_size))
    return {"calibration": by_model}


def _agreement(states: States, uses: Sequence[Use], rivals: Sequence[Rival], head: Headline) -> dict[str, Any]:
    """The agreement of hidden states after the uses."""
    after, at_rivals, of_rivals = states["after"], states["rivals"]["original"], [rival.use for rival in rivals]
    by_model = {}
    for name in STUDENTS:
        tokens = [use.token for use in uses]
        near = agreement.measure(after["original"], after[name], tokens, at_rivals, of_rivals)
        by_model[name] = agreement.summarise(near)
        head.add(f"{name}/agreement/cosine", near["centred"][-1])
    return {"agreement": by_model}


def _lens(made: Models, states: States, uses: Sequence[Use], head: Headline, share: Share) -> dict[str, Any]:
    """The logit lens before and after the uses."""
    device, parts = made.teacher.embedding.weight.device, share.parts(len(uses))

    def read_layers(part: range) -> dict[str, dict[str, lens.Curves]]:
        by_place = {}
        for place in ("before", "after"):
            readings = {
                name: lens.Reading(made.layers[name], states_KPD[:, part.start :: part.step].to(device))
                for name, states_KPD in states[place].items()
            }
            teacher = readings.pop("original")
            places = [getattr(uses[number], place) for number in part]
            by_place[place] = lens.measure(teacher, readings, places, made.pieces)
        return by_place

    found = share.each(parts, read_layers)
    by_place = {}
    for place in ("before", "after"):
        curves = _side_by_side([one[place] for one in found], parts)
        by_place[place] = lens.summarise(curves)
        for name in STUDENTS:
            head.add(f"{name}/lens/js_{place}", curves[name]["js"][-1])
    return {"lens": by_place}


def _side_by_side(found: Sequence[dict[str, lens.Curves]], parts: Sequence[range]) -> dict[str, lens.Curves]:
    """The curves at all uses, of those at some of them: ``parts`` says which each has."""
    order = np.argsort(np.concatenate(parts))
    return {
        name: {key: np.concatenate([one[name][key] for one in found], axis=1)[:, order] for key in of_model}
        for name, of_model in found[0].items()
    }


def _attention(made: Models, contexts: Sequence[Context], share: Share) -> dict[str, Any]:
    """Attention to new tokens, on contexts that are cut at common boundaries throughout."""
    with Bar("Attention", total=len(share.mine(contexts)), unit="contexts") as bar:

        def look(context: Context) -> dict[str, dict[str, Any]]:
            with attention.eager(made.teacher):
                teacher = attention.maps(made.teacher, context.old_ids)
            by_model = {}
            for name, student in made.students.items():
                with attention.eager(student):
                    maps = attention.maps(student, context.new_ids)
                by_model[name] = attention.measure(maps, teacher, context)
            bar.advance()
            return by_model

        found = share.each(contexts, look)
    return {"attention": {name: attention.summarise([one[name] for one in found]) for name in STUDENTS}}


def _geometry(
    cfg: InterpretConfig,
    made: Models,
    records: Sequence[NewToken],
    name: Callable[[int], str],
    points: dict[str, Any],
) -> dict[str, Any]:
    """Rows before and after training among the old ones; fills ``points`` with what the PCA plot shows."""
    size, pieces = made.pieces.old_size, made.pieces.pieces
    model = made.teacher.model
    old = {"input": embedding_of(model).weight[:size].float(), "output": head_of(model).weight[:size].float()}
    rows = {side: {student: _rows(made.students[student].rows, side) for student in STUDENTS} for side in old}
    tied = made.students["trained"].rows.tied
    report: dict[str, Any] = {"tied": tied}
    for side in ("input",) if tied else ("input", "output"):
        report[side] = geometry.measure(old[side], rows[side], pieces, cfg.seed)
        points[side], report[side]["principal_variance"] = geometry.principal(old[side], rows[side], cfg.seed)
    shuffled = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(cfg.seed))
    chosen = sorted(shuffled[: cfg.neighbours].tolist())
    near = {student: geometry.neighbours(old["input"], rows["input"][student], chosen, name) for student in STUDENTS}
    report["neighbours"] = [
        {
            "id": records[index].id,
            "string": records[index].string,
            "pieces": [name(piece) for piece in pieces[index]],
            **{student: near[student][number] for student in STUDENTS},
        }
        for number, index in enumerate(chosen)
    ]
    return {"geometry": report}


def _rows(rows: Rows, side: str) -> Float[Tensor, "N D"]:
    return (rows.input if side == "input" else rows.head).detach()


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
