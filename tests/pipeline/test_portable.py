"""What a run leaves behind can be handed on: it says nothing of the machine it was made on."""

from pathlib import Path

from tests.helpers import runs


def test_no_artifact_holds_a_path_of_this_machine(tmp_path: Path) -> None:
    """But for ``artifact.json``, the record of the configuration, which repeats the paths that the user gave."""
    corpus = runs.write_corpus(tmp_path / "corpus")
    runs.run(corpus, tmp_path / "outputs", "finetune=lora", "finetune.steps=2", "finetune.batch_size=1", draw=True)
    files = [path for path in (tmp_path / "outputs" / "artifacts").rglob("*") if path.is_file()]
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= {path.name for path in files}
    here = str(tmp_path).encode()
    assert not [str(path) for path in files if path.name != "artifact.json" and here in path.read_bytes()]
