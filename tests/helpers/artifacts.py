"""What the fixtures of tiny models and tokens are, and a tokens artifact written by hand."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch

from kldistill.model import tiny
from kldistill.model.load import load_original, load_original_tokenizer
from kldistill.rows.rows import Rows
from kldistill.tokens.artifact import NewToken, write_tables

FAMILIES = list(tiny.KIND_OF_FAMILY)
MakeModel = Callable[..., Path]
MakeTokens = Callable[..., Path]


def write_tokens(model_folder: Path, out: Path, n: int) -> Path:
    """Append ``n`` merges to the model's tokenizer and write the files of a tokens artifact."""
    tokenizer = load_original_tokenizer(model_folder)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab: dict[str, int] = spec["model"]["vocab"]
    old_size = 1 + max(tokenizer.get_vocab().values())
    special = set(tokenizer.all_special_ids)
    text = "\n".join(tiny.training_text())[:60_000]
    words = tokenizer.backend_tokenizer.pre_tokenizer
    pieces = [word for word, _ in words.pre_tokenize_str(text)] if words else text.replace(" ", "▁").split("\n")
    by_id = {index: token for token, index in vocab.items()}
    counts: Counter[tuple[int, int]] = Counter()
    for word in Counter(pieces):
        ids = [token.id for token in tokenizer.backend_tokenizer.model.tokenize(word.replace(" ", "▁"))]
        counts.update(pairwise(ids))
    new: list[NewToken] = []
    for (left, right), count in counts.most_common():
        joined = by_id[left] + by_id[right]
        if len(new) < n and joined not in vocab and not {left, right} & special and "<0x" not in joined:
            index = old_size + len(new)
            vocab[joined] = index
            spec["model"]["merges"].append([by_id[left], by_id[right]])
            text = tokenizer.decode([left, right])
            new.append(NewToken(index, text, joined, [left, right], count))
    assert len(new) == n
    tokenizer.save_pretrained(out / "tokenizer")
    (out / "tokenizer" / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False))
    write_tables(out, new, old_size, None)
    (out / "summary.json").write_text(json.dumps({"tokens/saved": 0.125, "tokens/added": n}))
    return out


def rows_for(model_folder: Path, n: int, tied: bool, out: Path, seed: int = 3) -> Path:
    """Random rows of the size of the old ones, unlike any of them."""
    weight = load_original(model_folder).get_input_embeddings().weight
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(n, weight.shape[1], generator=generator) * weight[:512].std() for _ in range(2)]
    out.mkdir()
    Rows(rows[0], None if tied else rows[1], {"input": "last_piece", "output": "random"}).save(out)
    return out
