"""Fixtures shared by all tests: tiny models of every family, and a tokens artifact made without the tokens stage."""

import json
import os
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("KLDISTILL_PROGRESS", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from kldistill import models, tiny
from kldistill.job import Job
from kldistill.model_config import TinyModelConfig

torch.set_num_threads(1)

FAMILIES = list(tiny.KIND_OF_FAMILY)
MakeModel = Callable[..., Path]
MakeTokens = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """``tiny_model(family="llama", **settings)``: folder of a model artifact, made once for the same settings.

    Settings are those of ``TinyModelConfig``. The folder is shared: never write into it.
    """
    made: dict[str, Path] = {}

    def make(family: str = "llama", **settings: object) -> Path:
        key = json.dumps([family, settings], sort_keys=True)
        if key not in made:
            out = tmp_path_factory.mktemp(f"model_{family}_")
            models.build(TinyModelConfig(family=family, **settings), {}, out, Job())  # type: ignore[arg-type]
            made[key] = out
        return made[key]

    return make


@pytest.fixture(scope="session")
def fake_tokens(tmp_path_factory: pytest.TempPathFactory) -> MakeTokens:
    """``fake_tokens(model_folder, n=24)``: a tokens artifact with the n most frequent pairs of old tokens as new ones.

    Made by hand, so that what comes after the tokens stage can be tested without it; old splitting rule.
    """
    made: dict[tuple[Path, int], Path] = {}

    def make(model_folder: Path, n: int = 24) -> Path:
        if (model_folder, n) not in made:
            made[model_folder, n] = write_tokens(model_folder, tmp_path_factory.mktemp("tokens_"), n)
        return made[model_folder, n]

    return make


def write_tokens(model_folder: Path, out: Path, n: int) -> Path:
    """Append ``n`` merges to the model's tokenizer and write the files of a tokens artifact."""
    tokenizer = models.load_tokenizer(model_folder)
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
    new: list[dict[str, object]] = []
    for (left, right), count in counts.most_common():
        joined = by_id[left] + by_id[right]
        if len(new) < n and joined not in vocab and not {left, right} & special and "<0x" not in joined:
            index = old_size + len(new)
            vocab[joined] = index
            spec["model"]["merges"].append([by_id[left], by_id[right]])
            text = tokenizer.decode([left, right])
            new.append({"id": index, "string": text, "token": joined, "pieces": [left, right], "count": count})
    assert len(new) == n
    tokenizer.save_pretrained(out / "tokenizer")
    (out / "tokenizer" / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False))
    (out / "new_tokens.jsonl").write_text("".join(json.dumps(token) + "\n" for token in new))
    sizes = {"old_size": old_size, "new_size": old_size + n, "byte_lengths": None}
    (out / "vocabulary.json").write_text(json.dumps(sizes))
    (out / "summary.json").write_text(json.dumps({"tokens/saved": 0.125, "tokens/added": n}))
    return out
