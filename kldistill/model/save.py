"""A model written as transformers reads it."""

from pathlib import Path

from transformers import PreTrainedModel

from kldistill.runtime.progress import without_bars_of_transformers


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Weights, configuration and generation settings, the last as they are.

    transformers may refuse to write sampling settings (``temperature``) beside ``do_sample=False``, which published
    folders have: it would end an export after all training.
    """
    settings = model.generation_config
    model.generation_config = type(settings)()
    try:
        with without_bars_of_transformers():
            model.save_pretrained(folder)
    finally:
        model.generation_config = settings
    if model.can_generate():
        settings.to_json_file(folder / "generation_config.json")
