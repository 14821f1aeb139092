"""Write the extended tokenizer so that plain ``AutoTokenizer.from_pretrained`` gives its ids, and prove that it does.

Only ``tokenizer.json`` changes in substance: vocabulary, merges, pre-tokenizer, AddedTokens. Everything else of the
folder (special tokens, chat template, limits) stays.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

from kldistill.runtime.errors import TokenizerError

# transformers rebuilds the pre-tokenizer of some model types (qwen2) from code, whatever class the folder names, unless
# the folder names a class of its own. Without trust_remote_code that class is ignored, and the generic one is used.
EXTENSIONS = "kldistill_extensions"
_OWN_CLASS = "tokenization_extended"
_OWN_CODE = '''"""The generic tokenizer, which takes everything from tokenizer.json."""

from transformers import PreTrainedTokenizerFast


class ExtendedTokenizer(PreTrainedTokenizerFast):
    """Named here so that transformers does not rebuild the pre-tokenizer of this model's type from its own code."""
'''


def extend(
    spec: dict[str, Any], size: int, tokens: list[str], merges: list[tuple[str, str]], added: bool = False
) -> dict[str, Any]:
    """The definition with new tokens (ids ``size``, ``size + 1``, ...) and new merges after the old ones.

    Args:
        spec: definition with the widened pre-tokenizer; not changed.
        size: V, the number of old ids.
        tokens: vocabulary entries, in the order of their ids.
        merges: pairs of vocabulary entries, in rank order.
        added: make the new tokens AddedTokens, which are found in the text before anything is cut.
    """
    model = dict(spec["model"])
    # AddedTokens get their id from the vocabulary when it has them, and else by counting, which would now be wrong.
    kept = {token["content"]: token["id"] for token in spec["added_tokens"]}
    new = {token: size + i for i, token in enumerate(tokens)}
    model["vocab"] = model["vocab"] | kept | new
    model["merges"] = [*model["merges"], *merges]
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "special": False}
    # After a space "single word" would ask that no word stands before the space, so it only fits terms without one
    # (``terms.added_tokens`` leaves out those with a space that would cut longer words).
    extra = [
        {"id": index, "content": token, "single_word": not token.startswith(" "), **flags}
        for token, index in new.items()
    ]
    extra = extra if added else []
    return {**spec, "model": model, "added_tokens": [*spec["added_tokens"], *extra]}


def save(
    tokenizer: PreTrainedTokenizerFast,
    spec: dict[str, Any],
    folder: Path,
    samples: list[str],
    config: PreTrainedConfig | None = None,
    extensions: Sequence[Mapping[str, int]] = (),
) -> None:
    """Write the folder of the extended tokenizer and check it as a stranger would load it.

    Args:
        tokenizer: the old tokenizer; gives everything but ``tokenizer.json``.
        spec: definition of the extended tokenizer.
        folder: written to.
        samples: texts whose ids must be the same when the folder is loaded.
        config: the model's config: a folder that holds a model too is loaded by the model's type.
        extensions: which ids came when (see ``extensions_of``), kept in ``tokenizer_config.json``.

    Raises:
        TokenizerError: the loaded tokenizer gives other ids.
    """
    tokenizer.save_pretrained(str(folder))
    for name in ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "added_tokens.json"):
        # Would describe the old vocabulary, and some loaders prefer them.
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False, indent=1), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    # Named classes may build their own pre-tokenizer; this one takes tokenizer.json as it is, in transformers 4 and 5.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in (
        "auto_map",
        "vocab_file",
        "merges_file",
        "tokenizer_file",
        "name_or_path",
        "is_local",
        "local_files_only",
    ):
        settings.pop(key, None)
    if extensions:
        settings[EXTENSIONS] = [dict(extension) for extension in extensions]
    _write(path, settings)
    if _agrees(folder, spec, samples, config):
        return
    settings["auto_map"] = {"AutoTokenizer": [None, f"{_OWN_CLASS}.ExtendedTokenizer"]}
    _write(path, settings)
    (folder / f"{_OWN_CLASS}.py").write_text(_OWN_CODE, encoding="utf-8")
    if not _agrees(folder, spec, samples, config):
        raise TokenizerError(
            f"The extended tokenizer of {type(tokenizer).__name__} gives other ids when it is loaded with "
            "AutoTokenizer: transformers rebuilds it from code of its own. Use tokens.boundary=word, which needs no "
            "other pre-tokenizer."
        )


def extensions_of(tokenizer: PreTrainedTokenizerFast) -> list[dict[str, int]]:
    """The extensions that a tokenizer has had, first to last: ``first_id`` and how many ``tokens``."""
    return list(tokenizer.init_kwargs.get(EXTENSIONS) or [])


def _write(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _agrees(folder: Path, spec: dict[str, Any], samples: list[str], config: PreTrainedConfig | None) -> bool:
    """Whether the folder, alone and beside a model of this config, loads as a tokenizer that works as defined."""
    wanted = Tokenizer.from_str(json.dumps(spec))
    # Left in many folders by training scripts; transformers sets both anew at every call.
    wanted.no_truncation()
    wanted.no_padding()
    if not _works(folder, wanted, samples):
        return False
    if config is None:
        return True
    with tempfile.TemporaryDirectory() as beside:
        shutil.copytree(folder, beside, dirs_exist_ok=True)  # with subfolders, such as additional_chat_templates
        config.save_pretrained(beside)
        return _works(Path(beside), wanted, samples)


def _works(folder: Path, wanted: Tokenizer, samples: list[str]) -> bool:
    """Whether the folder gives the same ids for the samples, and has the same steps.

    The steps are compared too because the samples need not contain what another step would change.
    """
    loaded = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)  # or it asks, where there is code
    if [list(loaded(text)["input_ids"]) for text in samples] != [e.ids for e in wanted.encode_batch(samples)]:
        return False
    got, meant = (json.loads(tokenizer.to_str()) for tokenizer in (loaded.backend_tokenizer, wanted))
    return all(got[step] == meant[step] for step in ("normalizer", "pre_tokenizer", "decoder"))
