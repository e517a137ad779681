"""Checkpoints return bit for bit onto any mesh, refuse what does not fit, notice damaged bytes."""

import json
import logging
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.files import json_checksum
from rlhf_jax.training import checkpoints
from rlhf_jax.training.checkpoints import (
    CheckpointKind,
    Meta,
    all_steps,
    checkpoint_folder,
    latest_step,
    lineage_entry,
    load_params,
    read_meta,
    resolve,
    restore,
    save,
)
from rlhf_jax.training.loop import checkpoint_trees, state_from_trees
from rlhf_jax.training.mesh import make_mesh, place, state_shardings
from rlhf_jax.training.updates import init_state

META = Meta(
    stage="sft",
    kind=CheckpointKind.LANGUAGE_MODEL,
    num_steps=40,
    model={"width": 8, "norm_eps": 1e-5},
    tokenizer="abc",
    lineage={
        "init": {"path": "runs/pretrain", "stage": "pretrain", "step": 9, "fingerprint": "00c0ffee"}
    },
    extra={"note": "naïve"},
)


def make_params(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "trunk": {
            "wte": jax.random.normal(keys[0], (16, 8)),
            "block_0": {"kernel": jax.random.normal(keys[1], (8, 8)), "bias": jnp.arange(8.0)},
        },
        "head": jax.random.normal(keys[2], (8, 4), jnp.bfloat16),
    }


def make_state(seed=0):
    extras = {
        "kl_coef": jnp.float32(0.05),
        "episode": np.int64(2**40),
        "target": 6.0,
        "history": np.arange(3),
    }
    return init_state(make_params(seed), optax.adam(1e-3), extras)


def assert_same(actual, expected):
    def same(a, b):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)

    jax.tree.map(same, actual, expected)


@pytest.fixture
def saved(tmp_path):
    """A workdir with steps 10 and 20, and the state of step 20."""
    for step in (10, 20):
        save(tmp_path, step, *checkpoint_trees(make_state(step)), META, keep=5)
    return tmp_path, make_state(20)


def test_everything_comes_back_bit_for_bit(saved):
    workdir, state = saved
    params, train, meta = restore(workdir, 20, *checkpoint_trees(make_state(1)))
    restored = state_from_trees(params, train)
    assert_same(restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert type(restored.extras["target"]) is float
    assert restored.extras["episode"] == 2**40
    assert meta == replace(META, step=20, fingerprint=meta.fingerprint)
    assert not meta.complete
    assert read_meta(workdir) == meta
    assert not restored.params["head"].committed  # as the example was


def test_loading_parameters_alone_and_the_lineage_they_leave(saved):
    workdir, state = saved
    params, meta = load_params(workdir)
    assert_same(params, state.params)
    assert lineage_entry(workdir, meta) == {
        "path": str(workdir),
        "stage": "sft",
        "step": 20,
        "fingerprint": meta.fingerprint,
    }
    older, older_meta = load_params(workdir / "checkpoints" / "10")
    assert_same(older, make_params(10))
    assert older_meta.step == 10
    assert older_meta.fingerprint != meta.fingerprint


def test_an_unfinished_parent_is_noted(saved, caplog):
    with caplog.at_level(logging.WARNING):
        load_params(saved[0])
    assert "unfinished run: step 20 of 40" in caplog.text


def test_parameters_move_to_any_mesh(tmp_path):
    source = make_mesh(2, 4, 1)
    params = make_params()
    sharded = place(params, state_shardings(params, source, 16))
    save(tmp_path, 40, sharded, {"step": jnp.zeros(())}, META, keep=1)
    target = make_mesh(-1, 2, 1)
    loaded, _ = load_params(tmp_path)
    assert_same(loaded, params)
    assert not loaded["head"].committed
    moved = place(loaded, state_shardings(loaded, target, 16))
    assert_same(moved, params)
    assert moved["trunk"]["wte"].addressable_shards[0].data.shape == (8, 8)
    elsewhere = place(params, state_shardings(params, target, 16))
    restored, _, _ = restore(tmp_path, 40, elsewhere, {"step": jnp.zeros(())})
    assert_same(restored, params)
    assert restored["trunk"]["wte"].sharding == elsewhere["trunk"]["wte"].sharding
    back, _, _ = restore(tmp_path, 40, sharded, {"step": jnp.zeros(())})
    assert back["trunk"]["wte"].sharding == sharded["trunk"]["wte"].sharding


def test_restoring_lists_every_leaf_that_does_not_fit(saved):
    workdir, state = saved
    expected = state.params | {"extra": jnp.zeros(3), "head": jnp.zeros((8, 5), jnp.bfloat16)}
    expected["trunk"] = {"wte": state.params["trunk"]["wte"].astype(jnp.bfloat16)}
    with pytest.raises(ValueError, match="does not fit this run") as caught:
        restore(workdir, 20, expected, checkpoint_trees(state)[1])
    message = str(caught.value)
    assert "missing    extra: this run float32[3]" in message
    assert "differs    head: checkpoint bfloat16[8, 4], this run bfloat16[8, 5]" in message
    assert "unexpected trunk/block_0/bias: checkpoint float32[8]" in message
    assert "unexpected trunk/block_0/kernel: checkpoint float32[8, 8]" in message
    assert "differs    trunk/wte: checkpoint float32[16, 8], this run bfloat16[16, 8]" in message
    assert "(5 leaves)" in message
    assert "start in a new workdir" in message


def test_another_optimizer_does_not_start_afresh_silently(saved):
    workdir, state = saved
    train = checkpoint_trees(state)[1] | {
        "opt_state": optax.sgd(0.1, momentum=0.9).init(state.params)
    }
    with pytest.raises(
        ValueError, match=r"opt_state/0/trace/trunk/wte(.|\n)*opt_state/0/mu/|opt_state/0/mu/"
    ):
        restore(workdir, 20, state.params, train)


@pytest.mark.parametrize("item", ["params", "train", "meta"])
def test_a_flipped_byte_anywhere_is_noticed_or_harmless(tmp_path, item):
    """Whatever byte is flipped, restoring raises naming the folder, or returns the same bits."""
    state = make_state()
    save(tmp_path, 10, *checkpoint_trees(make_state(1)), META, keep=5)
    save(tmp_path, 20, *checkpoint_trees(state), META, keep=5)
    noticed = []
    for path in sorted((checkpoint_folder(tmp_path, 20) / item).rglob("*")):
        if path.is_dir() or path.stat().st_size == 0:
            continue
        original = path.read_bytes()
        damaged = bytearray(original)
        damaged[len(damaged) // 2] ^= 0x41
        path.write_bytes(bytes(damaged))
        try:
            params, train, _ = restore(tmp_path, 20, *checkpoint_trees(state))
            assert_same((params, train), checkpoint_trees(state))
        except ValueError as error:
            assert f"{checkpoint_folder(tmp_path, 20)} is damaged at {item}" in str(error)  # noqa: PT017
            assert "to fall back to step 10" in str(error)  # noqa: PT017
            noticed.append(path.name)
        path.write_bytes(original)
    assert noticed


def test_a_flipped_byte_of_a_leaf_is_an_error_that_names_the_leaf(saved, monkeypatch):
    workdir, _ = saved
    honest = checkpoints._read_arrays

    def flip(folder, item, names):
        named = honest(folder, item, names)
        kernel = named["trunk/block_0/kernel"].copy()
        kernel.view(np.uint8)[3, 5] ^= 1
        return named | {"trunk/block_0/kernel": kernel}

    monkeypatch.setattr(checkpoints, "_read_arrays", flip)
    with pytest.raises(
        ValueError, match=r"checkpoints/20 is damaged at params/trunk/block_0/kernel: .*crc32"
    ):
        load_params(workdir)


def test_truncated_and_missing_files_are_errors_with_a_remedy(saved):
    workdir, state = saved
    folder = checkpoint_folder(workdir, 20)
    for path in (folder / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        ValueError, match=rf"{folder} is damaged at params.*Delete {folder} to fall back to step 10"
    ):
        load_params(workdir)
    (folder / "meta" / "metadata").unlink()
    with pytest.raises(ValueError, match=r"20 is damaged at meta: FileNotFoundError"):
        restore(workdir, 20, *checkpoint_trees(state))
    (checkpoint_folder(workdir, 10) / "meta" / "metadata").write_text("{}")
    with pytest.raises(
        ValueError, match=r"10 is damaged at meta.*start the run again \(there is no earlier step\)"
    ):
        load_params(workdir / "checkpoints" / "10")


def test_edited_metadata_is_noticed(saved):
    file = checkpoint_folder(saved[0], 20) / "meta" / "metadata"
    content = json.loads(file.read_text())
    content["meta"]["step"] = 21
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"damaged at meta: .*CRC-32"):
        read_meta(saved[0])


def test_meta_of_another_version_is_an_error_that_names_the_fields(saved):
    file = checkpoint_folder(saved[0], 20) / "meta" / "metadata"
    content = json.loads(file.read_text())
    content["meta"]["flavour"] = content["meta"].pop("tokenizer")
    del content["crc32"]
    file.write_text(json.dumps(content | {"crc32": json_checksum(content)}))
    with pytest.raises(ValueError, match=r"another version .*\(flavour, tokenizer\)"):
        load_params(saved[0])


def test_half_written_checkpoints_are_ignored_with_a_note_and_cleared_by_the_next_save(
    saved, caplog
):
    workdir, state = saved
    root = workdir / "checkpoints"
    half = [root / "30.orbax-checkpoint-tmp", root / "31", root / "5.deleted"]
    for folder in [*half, root / "my_backup"]:
        (folder / "params").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        assert latest_step(workdir) == 20
    for folder in half:
        assert f"half-written checkpoint {folder}" in caplog.text
    assert "my_backup" not in caplog.text
    save(workdir, 30, *checkpoint_trees(state), META, keep=5)
    assert sorted(path.name for path in root.iterdir()) == ["10", "20", "30", "my_backup"]


def test_the_newest_are_kept(tmp_path):
    tree = {"w": jnp.ones(2)}
    for step in range(1, 7):
        save(tmp_path, step, tree, tree, META, keep=2)
    assert all_steps(tmp_path) == [5, 6]
    assert resolve(tmp_path) == checkpoint_folder(tmp_path, 6)
    assert resolve(checkpoint_folder(tmp_path, 5)) == checkpoint_folder(tmp_path, 5)


def test_saving_a_step_twice_or_a_bad_number_or_leaf_is_an_error(saved):
    workdir, state = saved
    params, train = checkpoint_trees(state)
    with pytest.raises(ValueError, match="checkpoints/20 exists already"):
        save(workdir, 20, params, train, META, keep=2)
    bad = params | {"head": params["head"].at[0, 0].set(jnp.nan)}
    with pytest.raises(FloatingPointError, match="parameter head is not finite at step 21"):
        save(workdir, 21, bad, train, META, keep=2)
    with pytest.raises(ValueError, match=r"leaf key is .*only number arrays"):
        save(workdir, 21, params, {"key": jax.random.key(0)}, META, keep=2)
    with pytest.raises(ValueError, match="keep = 0"):
        save(workdir, 21, params, train, META, keep=0)
    assert all_steps(workdir) == [10, 20]


def test_a_missing_checkpoint_names_the_path_the_neighbours_and_the_remedy(tmp_path):
    tree = {"w": jnp.ones(2)}
    save(tmp_path / "pretrain", 7, tree, tree, META, keep=1)
    (tmp_path / "dpo").mkdir()
    (tmp_path / "dpo" / "config.json").write_text('{"stage": "preference"}')
    with pytest.raises(FileNotFoundError) as caught:
        load_params(tmp_path / "sft")
    message = str(caught.value)
    assert f"no checkpoint at {tmp_path / 'sft'}; {tmp_path} has pretrain (step 7)" in message
    assert "Correct the path, or train the model first" in message
    assert f"python -m rlhf_jax.main --config=FILE --workdir={tmp_path / 'sft'}" in message
    with pytest.raises(FileNotFoundError, match=r"Stage preference was begun .* its config"):
        load_params(tmp_path / "dpo")
    with pytest.raises(FileNotFoundError, match=r"pretrain has steps 7"):
        load_params(tmp_path / "pretrain" / "checkpoints" / "8")
    with pytest.raises(FileNotFoundError, match=r"pretrain has steps 7"):
        restore(tmp_path / "pretrain", 8, tree, tree)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind = 'policy'"):
        Meta(stage="ppo", kind="policy", num_steps=1, model={}, tokenizer="", lineage={})


def test_saving_sixty_small_leaves_is_quick(tmp_path):
    tree = {
        f"layer_{i}": {"kernel": np.ones((32, 32), np.float32), "bias": np.ones(32)}
        for i in range(30)
    }
    save(tmp_path, 1, tree, tree, META, keep=1)  # imports Orbax
    began = time.monotonic()
    save(tmp_path, 2, tree, tree, META, keep=1)
    assert time.monotonic() - began < 3  # 0.2 s on a quiet core; CI machines are not quiet
