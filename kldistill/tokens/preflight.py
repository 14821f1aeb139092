"""What the extended tokenizer will do, as figures, refusals and warnings, before anything is trained."""

import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kldistill.runtime.errors import TokenizerError
from kldistill.tokens.artifact import NewToken
from kldistill.tokens.examiner import Examiner, unreachable

MAX_VIOLATIONS = 0.001
FEW_USES = 20
FEW_DOCUMENTS = 8  # below it no interval is given anywhere


def prefix_closed(tokens: list[NewToken]) -> float:
    """Share of the new tokens with pieces all of whose proper prefixes are tokens."""
    known = {tuple(token.pieces) for token in tokens if token.pieces}
    closed = [all(p[:n] in known for n in range(2, len(p))) for p in known]
    return float(np.mean(closed)) if closed else 1.0


def overlapping(tokens: list[NewToken]) -> int:
    """New tokens that end in pieces with which another new token begins: there BPE and longest match may differ."""
    known = {tuple(token.pieces) for token in tokens if token.pieces}
    heads = {p[:n] for p in known for n in range(1, len(p))}
    return sum(any(p[n:] in heads for n in range(1, len(p))) for p in known)


def figures(examiner: Examiner, tokens: list[NewToken], split: str = "test") -> dict[str, float]:
    """The summary figures of the stage (flat, names as in ``docs/metrics.md``); sizes are those of ``split``."""
    findings = examiner.findings
    sizes = findings.splits[split]
    bytes_, old, new = max(sizes.bytes, 1), max(sizes.old, 1), max(sizes.new, 1)
    lower, upper = np.quantile(sizes.saved or [0.0], [0.25, 0.75]).tolist()
    return {
        "tokens/old_size": examiner.size,
        "tokens/new_size": examiner.size + len(tokens),
        "tokens/added": len(tokens),
        "tokens/per_1000_bytes/old": 1000 * sizes.old / bytes_,
        "tokens/per_1000_bytes/new": 1000 * sizes.new / bytes_,
        "tokens/bytes_per_token/old": sizes.bytes / old,
        "tokens/bytes_per_token/new": sizes.bytes / new,
        "tokens/saved": 1 - sizes.new / old,
        "tokens/saved/lower_quartile": lower,
        "tokens/saved/upper_quartile": upper,
        "tokens/documents": len(sizes.saved),
        "tokens/boundaries": findings.boundaries,
        "tokens/refinement_violations": findings.violations,
        "tokens/piece_mismatches": findings.mismatches,
        "tokens/unaligned_documents": findings.unaligned,
        "tokens/unreachable": len(unreachable(examiner.new, tokens, findings.uses)),
        "tokens/swallowed": sum(token.count == 0 for token in tokens),
        "tokens/few_uses": sum(token.count < FEW_USES for token in tokens),
        "tokens/unused_held_out": int(np.sum(findings.uses == 0)),
        "tokens/overlaps": findings.contested,
        "tokens/overlapping": overlapping(tokens),
        "tokens/prefix_closed": prefix_closed(tokens),
        "tokens/broken_documents": findings.broken,
        "tokens/miscounted": findings.miscounted,
        "tokens/old_words_changed": findings.changed_words,
        "tokens/special_in_text": findings.special,
    }


def refusals(figure: Mapping[str, float]) -> list[str]:
    """Why the extended tokenizer cannot work, as sentences with the way out."""
    reasons = []
    if figure["tokens/broken_documents"]:
        reasons.append(
            f"{figure['tokens/broken_documents']} held-out documents decode to another text than with the old "
            "tokenizer. Use tokens.boundary=word, or other terms."
        )
    wrong = figure["tokens/refinement_violations"] + figure["tokens/piece_mismatches"]
    if wrong > MAX_VIOLATIONS * figure["tokens/boundaries"]:
        reasons.append(
            f"{wrong} of {figure['tokens/boundaries']} tokens of held-out text do not consist of whole old tokens (at "
            f"most {MAX_VIOLATIONS:.1%} are bearable), so the two models could not be compared there. Use a narrower "
            "boundary (tokens.boundary=identifier or word)."
        )
    if figure["tokens/miscounted"]:
        reasons.append(
            f"{figure['tokens/miscounted']} new tokens occur in the train text less often than was counted: the "
            "tokenizer is not read as it is meant. Use tokens.boundary=word, and report this tokenizer, please."
        )
    if figure["tokens/old_words_changed"] > MAX_VIOLATIONS * figure["tokens/old_size"]:
        reasons.append(
            f"{figure['tokens/old_words_changed']} of {figure['tokens/old_size']} old tokens fall apart inside a wider "
            "word, so text without any new token would be cut otherwise. Use tokens.boundary=word."
        )
    if 0 < figure["tokens/added"] <= figure["tokens/unreachable"]:
        reasons.append("No text produces any of the new tokens. Give another corpus, other terms, or a wider boundary.")
    return reasons


def warnings(figure: Mapping[str, float]) -> list[str]:
    """What will work badly, as sentences with the way out."""
    added, lines = figure["tokens/added"], []
    wrong = figure["tokens/refinement_violations"] + figure["tokens/piece_mismatches"]
    if wrong:
        lines.append(f"{wrong} tokens of held-out text do not consist of whole old tokens; those places teach nothing.")
    if figure["tokens/old_words_changed"]:
        lines.append(
            f"{figure['tokens/old_words_changed']} old tokens fall apart inside a wider word (x_word_y): their text is "
            "cut otherwise there. tokens.boundary=word leaves them whole."
        )
    if figure["tokens/unaligned_documents"]:
        lines.append(
            f"{figure['tokens/unaligned_documents']} held-out documents have different bytes under both tokenizers and "
            "were not compared (AddedTokens that change the spaces around them do this)."
        )
    if figure["tokens/unreachable"]:
        lines.append(
            f"{figure['tokens/unreachable']} new tokens were never produced, not even by their own string: later "
            "merges swallow them. Their rows stay as they were initialised. Fewer tokens (tokens.n_new) avoid them."
        )
    if figure["tokens/few_uses"] > 0.1 * added:
        lines.append(
            f"{figure['tokens/few_uses']} of {added} new tokens occur fewer than {FEW_USES} times in the train text, "
            "too rarely to learn much. Use more text, fewer tokens (tokens.n_new), or a higher tokens.min_count."
        )
    if figure["tokens/unused_held_out"] > 0.25 * added:
        lines.append(
            f"{figure['tokens/unused_held_out']} of {added} new tokens never occur in held-out text: they belong to "
            "a part of the corpus (whole folders are held out unless corpus.split_by=document), or are chance finds. "
            "More text or a higher tokens.min_count avoids the latter."
        )
    if figure["tokens/overlaps"] > 0.01 * figure["tokens/boundaries"]:
        lines.append(
            f"At {figure['tokens/overlaps']} of {figure['tokens/boundaries']} places of held-out text a longer token "
            "would have fitted: the kl loss leaves out part of what the teacher says there. Fewer tokens lower this."
        )
    n, low, high = (figure[f"tokens/{name}"] for name in ("documents", "saved/lower_quartile", "saved/upper_quartile"))
    if n < FEW_DOCUMENTS:
        lines.append(
            f"The test split has only {n} document{'s'[: n != 1]}: what is saved on other text may be far from this. "
            "corpus.test=0.2 or corpus.split_by=document give it more."
        )
    elif added and not low <= figure["tokens/saved"] <= high:
        lines.append(
            f"A few large documents decide what is saved: {figure['tokens/saved']:.1%} of all held-out text, but "
            f"{low:.1%} to {high:.1%} of half of its documents. If the large ones are of another kind (tables, data), "
            "leave them out with corpus.glob."
        )
    if added and figure["tokens/saved"] < 0.01:
        lines.append(f"Only {figure['tokens/saved']:.1%} of the tokens are saved. The corpus may be no special domain.")
    return lines


def check(figure: Mapping[str, float]) -> None:
    """Raise ``TokenizerError`` with every reason if the extended tokenizer cannot work."""
    if reasons := refusals(figure):
        raise TokenizerError("The extended tokenizer was refused before training. " + " ".join(reasons))


def as_json(figure: Mapping[str, float], tokens: list[NewToken], uses: NDArray[np.int64]) -> str:
    """The whole report for machines: figures, refusals, warnings, and every token with its uses."""
    listed = [{**t._asdict(), "held_out": used} for t, used in zip(tokens, uses.tolist(), strict=True)]
    content = {"figures": dict(figure), "refusals": refusals(figure), "warnings": warnings(figure), "tokens": listed}
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def as_text(figure: Mapping[str, float], tokens: list[NewToken], uses: NDArray[np.int64]) -> str:
    """The report for people: figures, refusals and warnings, the most and the least used tokens."""
    lines = ["Preflight of the extended tokenizer", ""]
    width = max(map(len, figure))
    for name, value in figure.items():
        lines.append(
            f"  {name:<{width}}  {value:>14,.4f}" if isinstance(value, float) else f"  {name:<{width}}  {value:>14,}"
        )
    for title, sentences in (("Refused because", refusals(figure)), ("Warnings", warnings(figure))):
        lines += ["", f"{title}:" if sentences else f"{title}: none", *(f"  - {sentence}" for sentence in sentences)]
    order = sorted(range(len(tokens)), key=lambda i: (-tokens[i].count, i))
    shown = [("Most used", order[:25])] + ([("Least used", order[-15:])] if len(order) > 40 else [])
    for title, some in shown:
        lines += ["", f"{title}:", f"  {'id':>8}  {'train':>9}  {'held out':>9}  {'pieces':>6}  string"]
        for i in some:
            token = tokens[i]
            lines.append(
                f"  {token.id:>8}  {token.count:>9,}  {int(uses[i]):>9,}  {len(token.pieces):>6}  {token.string!r}"
            )
    return "\n".join(lines) + "\n"
