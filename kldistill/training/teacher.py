"""Stage ``teacher``: which text trains the student, and the frozen model's hidden states of it."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from kldistill.corpus.documents import read_documents
from kldistill.corpus.snippets import Snippet, cover, cut, draw
from kldistill.model.load import load_original_config, load_original_tokenizer
from kldistill.rows.sharding import home, place
from kldistill.rows.student import bare
from kldistill.runtime.devices import accelerator, sizes
from kldistill.runtime.files import write_summary
from kldistill.runtime.job import Job, short_of
from kldistill.runtime.shares import Share
from kldistill.tokens.artifact import load_extended_tokenizer, read_new_tokens
from kldistill.tokens.encoding import encode_snippets
from kldistill.tokens.windows import within_context
from kldistill.training import states, texts
from kldistill.training.config import TeacherConfig

# Candidates for each snippet that is chosen to cover: more candidates show rare tokens more often, and fewer leave the
# seed a choice of its own.
CANDIDATES = 10


def build(cfg: TeacherConfig, inputs: Mapping[str, Path], out: Path, job: Job) -> None:
    """Choose the snippets and store the teacher's ids and last hidden states of them.

    Args:
        inputs: ``model`` and ``corpus``; with ``draw=cover`` also ``tokens``, and ``written`` where the original model
            has written text to train on.
        out: gets ``train.jsonl``, ``validation.jsonl``, ``general.jsonl`` (general text for validation, where the
            corpus keeps some) and, of those that ``cfg.states`` says, an ``.npy`` each.

    Raises:
        ConfigError: general text is to be trained on, and the corpus has kept none for it.
    """
    tokenizer = load_original_tokenizer(inputs["model"])
    accelerate = accelerator(job.runtime, "no")
    device, share = accelerate.device, Share.of(accelerate, job.runtime)
    figures: dict[str, float] = {}
    train = cut(read_documents(inputs["corpus"], "train"), cfg.snippet_bytes)
    validation = cut(read_documents(inputs["corpus"], "validation"), cfg.snippet_bytes)
    written = texts.self_written(inputs["written"]) if "written" in inputs else []
    n_domain = cfg.n_snippets - texts.n_of(cfg.n_snippets, cfg.general) - len(written)
    new = {token.id for token in read_new_tokens(inputs["tokens"])} if cfg.draw == "cover" else set[int]()
    if new:  # else nothing is to be covered
        candidates = draw(train, n=CANDIDATES * n_domain, seed=cfg.seed)
        chosen, seen = covering(candidates, new, load_extended_tokenizer(inputs["tokens"]), n_domain)
        figures |= seen
        n_seen, n_new = (int(seen[f"teacher/train/{name}"]) for name in ("new_tokens_seen", "new_tokens"))
        job.say(
            f"{n_seen:,} of {n_new:,} new tokens occur in the {len(chosen):,} training snippets, "
            f"{seen['teacher/train/times_median']:g} times in the median."
        )
    else:
        chosen = draw(train, n=n_domain, seed=cfg.seed)
    chosen, general_share = texts.with_general(
        [*chosen, *written], inputs["corpus"], cfg.general, cfg.snippet_bytes, cfg.seed, "distill.general", job.say
    )
    asked = f"distill.self_written={cfg.self_written}"
    n, n_written = len(written), texts.n_of(cfg.n_snippets, cfg.self_written)
    cure = "The model ended the others at once."
    figures["teacher/train/self_written"] = float(n)
    figures["teacher/train/self_written_share"] = texts.had_of(
        n, n_written, len(chosen), asked, "that the original model wrote", cure, job.say
    )
    figures["teacher/train/general_share"] = general_share
    # Every seed is validated on the same text.
    of_domain, n_bytes = draw(validation, n_bytes=cfg.validation_bytes), max(1, cfg.validation_bytes // 3)
    of_general = texts.general(inputs["corpus"], "validation", cfg.snippet_bytes, n_bytes=n_bytes, say=job.say)
    short_of(
        "distill.validation_bytes",
        cfg.validation_bytes,
        sum(snippet.n_bytes for snippet in of_domain),
        "bytes in the validation split",
        "The figures of validation are of all of them. More text, or a larger corpus.validation, gives more.",
        job.say,
    )
    held_out = {"validation": of_domain, "general": of_general}
    model = None if cfg.states == "none" else place(bare(inputs["model"], home(device, share)), device, share)
    config = load_original_config(inputs["model"])
    for name, drawn in {"train": chosen, **held_out}.items():
        if not drawn:
            continue
        snippets = within_context(drawn, tokenizer, config)
        encoded = encode_snippets(tokenizer, snippets)
        stored = None if name == "train" and cfg.states == "held_out" else model
        states.write(
            out,
            name,
            stored,
            snippets,
            encoded,
            batch_size=2 * sizes(job.runtime).score_batch,  # snippets are half as long as windows, about
            device=device,
            description=f"Teacher on {name} text",
            share=share,
        )
        figures[f"teacher/{name}/snippets"] = len(snippets)
        figures[f"teacher/{name}/tokens"] = sum(len(one.ids) for one in encoded)
        figures[f"teacher/{name}/bytes"] = sum(snippet.n_bytes for snippet in snippets)
    if share.main:
        write_summary(out, figures)
        job.log(figures)


def covering(
    candidates: Sequence[Snippet], new: Set[int], tokenizer: PreTrainedTokenizerBase, n: int
) -> tuple[list[Snippet], dict[str, float]]:
    """The ``n`` candidates that show the new tokens best (see ``cover``), and how often they show them.

    Args:
        candidates: snippets to choose from.
        new: ids of the new tokens.
        tokenizer: the extended one.
    """
    encoded = encode_snippets(tokenizer, candidates)
    counts = [Counter(token for token in one.ids if token in new) for one in encoded]
    chosen = cover(counts, n)
    total = sum((counts[index] for index in chosen), Counter[int]())
    figures = {
        "teacher/train/new_tokens": float(len(new)),
        "teacher/train/new_tokens_seen": float(len(total)),
        "teacher/train/times_median": float(statistics.median(total[token] for token in new)),
    }
    return [candidates[index] for index in chosen], figures
