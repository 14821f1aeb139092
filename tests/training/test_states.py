"""The teacher's states on disk."""

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from kldistill.model.load import load_original
from kldistill.rows.rows import Rows
from kldistill.rows.student import Student
from kldistill.training import states
from kldistill.training.padding import by_length, pad
from tests.helpers.artifacts import MakeModel, MakeTokens
from tests.helpers.disks import ROOT_ON_LINUX, small_disk
from tests.helpers.setting import CPU, Setting, make_setting, whole


@pytest.fixture(scope="module")
def setting(tiny_model: MakeModel, fake_tokens: MakeTokens, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tiny_model(hidden_size=16, layers=1)
    return make_setting(folder, fake_tokens(folder), tmp_path_factory.mktemp("states"))


def test_states_are_those_of_each_text_alone(setting: Setting) -> None:
    """The snippets have different lengths and were run as padded batches, longest first."""
    assert len({len(ids) for ids in setting.states.ids}) > 3
    for index, ids in enumerate(setting.states.ids):
        alone = setting.teacher.hidden(torch.tensor([ids]))[0]
        stored = setting.states.hidden(index)
        assert stored.shape == (len(ids), 16)
        assert stored.dtype == torch.float32
        torch.testing.assert_close(stored, alone, rtol=1e-4, atol=1e-5)


@ROOT_ON_LINUX
def test_a_full_disk_is_an_error_and_does_not_end_the_process(setting: Setting, tmp_path: Path) -> None:
    """Writing to a file that is mapped into memory would: its pages have no room, which is a bus error."""
    found = setting.states
    with small_disk(tmp_path / "disk", kib=found.offsets[-1] * 16 * 4 // 1024 // 2) as disk:
        with pytest.raises(OSError) as caught:
            states.write(
                disk.folder,
                "x",
                setting.teacher,
                found.snippets,
                whole(found.ids),
                batch_size=2,
                device=CPU,
                description="",
            )
        assert caught.value.errno == errno.ENOSPC


def test_stored_states_may_be_changed_without_harm(setting: Setting) -> None:
    before = setting.states.hidden(0).clone()
    setting.states.hidden(0).zero_()
    assert torch.equal(setting.states.hidden(0), before)


def test_without_a_model_there_are_texts_and_ids_only(setting: Setting, tmp_path: Path) -> None:
    found = setting.states
    states.write(tmp_path, "x", None, found.snippets, whole(found.ids), batch_size=2, device=CPU, description="")
    again = states.read(tmp_path, "x")
    assert again.values is None
    assert (again.snippets, again.ids, again.offsets) == (found.snippets, found.ids, found.offsets)
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_states_are_stored_in_the_models_own_type_and_lose_nothing(
    setting: Setting, tmp_path: Path, tiny_model: MakeModel, dtype: torch.dtype
) -> None:
    model = load_original(tiny_model(hidden_size=16, layers=1)).to(dtype)  # type: ignore[arg-type]
    own = Student(model, Rows(torch.zeros(0, 16)), setting.pieces.old_size)
    snippets, ids = setting.states.snippets[:2], setting.states.ids[:2]
    states.write(tmp_path, "x", own, snippets, whole(ids), batch_size=1, device=CPU, description="")
    assert np.load(tmp_path / "x.npy").nbytes == sum(map(len, ids)) * 16 * torch.empty(0, dtype=dtype).element_size()
    for index, row in enumerate(ids):
        stored = states.read(tmp_path, "x").hidden(index)
        assert stored.dtype == torch.float32
        assert torch.equal(stored, own.hidden(torch.tensor([row]))[0].float())
        assert torch.equal(own.logits_old(stored), own.logits(stored.to(dtype)))


def test_pad_and_by_length() -> None:
    ids, mask = pad([[5, 6], [7], [8, 9, 4]])
    assert ids.tolist() == [[5, 6, 0], [7, 0, 0], [8, 9, 4]]
    assert mask.tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    assert by_length([[5, 6], [7], [8, 9, 4]], 2) == [[2, 0], [1]]
