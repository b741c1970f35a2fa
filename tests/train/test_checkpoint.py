"""Checkpoints: the last and the best are kept, damage is noticed, nothing is deleted."""

import logging
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax.errors import StorageError, UserError
from hos_jax.files import write_atomically
from hos_jax.training.checkpoint import Checkpoints, checksum, free_name


def state(value):
    values = np.random.default_rng(value).normal(size=(300, 70)).astype(np.float32)
    return {"params": {"w": values}, "step": np.int32(value)}


@pytest.fixture
def filled(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0), (4, 5.0), (5, 4.0)]:
        checkpoints.save(step, state(step), held_out_loss=loss, details={"seconds": 1.5 * step})
    checkpoints.close()
    return tmp_path / "checkpoints"


def biggest_file(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def test_the_last_and_the_best_are_kept_and_read_back(filled):
    checkpoints = Checkpoints(filled, keep=2)
    assert checkpoints.steps() == [2, 4, 5]
    restored = checkpoints.restore(state(0))
    assert restored.step == 5 and restored.details["seconds"] == 7.5
    assert restored.details["held_out_loss"] == 4.0
    np.testing.assert_array_equal(restored.state["params"]["w"], state(5)["params"]["w"])
    checkpoints.close()


def test_a_resumed_run_goes_on_to_keep_the_last_and_the_best(filled):
    for step, loss in [(6, 7.0), (7, None), (8, 0.5), (9, 0.7), (10, None)]:
        checkpoints = Checkpoints(filled, keep=2)
        checkpoints.save(step, state(step), held_out_loss=loss, details={})
        checkpoints.close()
        assert len(checkpoints.steps()) <= 3 and checkpoints.steps()[-1] == step
        assert (2 if step < 8 else 8) in checkpoints.steps()
    assert checkpoints.steps() == [8, 9, 10]


def test_damaged_notes_of_one_checkpoint_do_not_hide_the_others(filled):
    for content in ('[{"step": "x"}]', "3", "{"):
        (filled / "4" / "_CHECKPOINT_METADATA").write_text(content)
        checkpoints = Checkpoints(filled, keep=2)
        assert checkpoints.restore(state(0)).step == 5
        checkpoints.close()
    checkpoints = Checkpoints(filled, keep=1)
    checkpoints.save(6, state(6), held_out_loss=4.0, details={})
    checkpoints.close()
    assert checkpoints.steps() == [2, 6]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_used(filled, caplog, damage):
    victim = biggest_file(filled / "5" / "state")
    content = bytearray(victim.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0x10
        victim.write_bytes(content)
    elif damage == "truncate":
        victim.write_bytes(content[: len(content) // 2])
    else:
        victim.unlink()
    checkpoints = Checkpoints(filled, keep=2)
    with caplog.at_level(logging.WARNING):
        restored = checkpoints.restore(state(0))
    assert restored.step == 4
    assert str(filled / "5") in caplog.text and "cannot be read" in caplog.text
    assert (filled / "5").is_dir()
    assert checkpoints.restore(state(0), move_unreadable=True).step == 4
    assert not (filled / "5").exists()
    assert len(list((filled.parent / "corrupt_checkpoints").iterdir())) == 1
    checkpoints.save(5, state(5), held_out_loss=4.0, details={})
    checkpoints.wait()
    assert checkpoints.restore(state(0)).step == 5
    checkpoints.close()


def test_when_none_can_be_read_nothing_moves(filled):
    checkpoints = Checkpoints(filled, keep=2)
    other_model = {"params": {"w": np.zeros((2, 2), np.float32)}, "step": np.int32(0)}
    with pytest.raises(UserError, match="no readable checkpoint"):
        checkpoints.restore(other_model, move_unreadable=True)
    assert checkpoints.steps() == [2, 4, 5]
    checkpoints.close()


def test_what_is_not_saved_is_told(filled):
    checkpoints = Checkpoints(filled, keep=2)
    with pytest.raises(StorageError, match=r"there is one of step 3 or later.* step 5 is kept"):
        checkpoints.save(3, state(3), held_out_loss=0.5, details={})
    assert checkpoints.steps() == [2, 4, 5]
    checkpoints.close()


def test_a_folder_that_is_moved_is_not_made_again(filled):
    checkpoints = Checkpoints(filled, keep=2)
    filled.rename(filled.parent / "moved")
    with pytest.raises(StorageError, match=r"moved or deleted meanwhile\): no checkpoint yet"):
        checkpoints.save(6, state(6), held_out_loss=0.5, details={})
    checkpoints.close()
    assert not filled.exists()


def test_a_run_that_has_saved_nothing_is_waited_for(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    with pytest.raises(UserError, match="there is none yet: wait for it"):
        checkpoints.restore(state(0))
    checkpoints.close()


def test_checksum_depends_on_every_byte():
    tree = state(1)
    before = checksum(tree)
    tree["params"]["w"][7, 3] = np.nextafter(tree["params"]["w"][7, 3], np.float32(2))
    assert checksum(tree) != before
    assert checksum({"a": jnp.ones(3)}) == checksum({"a": np.ones(3, np.float32)})


def test_several_may_write_one_file_at_once(tmp_path):
    """As two tests of a run do: each ends well, and one of the contents is there, whole."""
    path, texts = tmp_path / "metrics.json", [letter * 10_000 for letter in "abcd"]

    def write(text):
        for _ in range(50):
            write_atomically(path, text)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, texts))
    assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]


def test_free_name_never_returns_a_taken_one(tmp_path):
    path = tmp_path / "run"
    taken = set()
    for _ in range(4):
        target = free_name(path)
        assert target not in taken and not target.exists()
        target.mkdir()
        taken.add(target)
