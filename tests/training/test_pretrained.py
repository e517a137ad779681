"""Hugging Face as a parent of our stages, and our checkpoints as models of Hugging Face."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import make_huggingface_fixtures as golden
import numpy as np
import pytest

from rlhf_jax.apps import export
from rlhf_jax.apps.chat import load
from rlhf_jax.data.tokenizers import load_tokenizer, train_words
from rlhf_jax.models import LanguageModel, ScalarModel, from_dict, gpt, init_params, to_dict
from rlhf_jax.models.huggingface import load_pretrained
from rlhf_jax.models.huggingface.peft import save_peft
from rlhf_jax.models.lora import (
    LoraConfig,
    add_scales,
    combine,
    describe_adapters,
    init_adapters,
    partition,
)
from rlhf_jax.training import checkpoints
from rlhf_jax.training.checkpoints import CheckpointKind
from rlhf_jax.training.mesh import make_mesh
from rlhf_jax.training.metrics import MetricsWriter
from rlhf_jax.training.pretrained import (
    describe_link,
    link_to_base,
    load_model,
    read_meta,
    read_tokenizer,
)
from rlhf_jax.training.run import MeshConfig, Run

FLOAT32 = {"param_dtype": "float32", "compute_dtype": "float32"}
LORA = LoraConfig(2, 4.0, ("query", "up"))
TOKENIZER = train_words(["the fox is red and the cat is not", "why is it so"])


@pytest.fixture
def foreign(tmp_path):
    """A folder as on the hub: a llama of 24 rows, a tokenizer of 22 tokens that knows no chat."""
    folder = Path(shutil.copytree(golden.FOLDER / "llama", tmp_path / "foreign"))
    vocab = {
        word: i for i, word in enumerate(["<s>", "</s>", "[UNK]", *(f"w{i}" for i in range(3, 22))])
    }
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    special = [
        {
            "id": 1,
            "content": "</s>",
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
    ]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": model,
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "pad_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_chat_markers_become_the_mean_of_the_tokens(foreign):
    _, plain = load_pretrained(foreign, kind="language_model", **FLOAT32)
    path = f"hf:{foreign}"
    (params, meta), tokenizer = load_model(path), read_tokenizer(path)
    assert (tokenizer.user_id, tokenizer.assistant_id, tokenizer.eos_id) == (22, 23, 1)
    old, new = np.asarray(plain["trunk"]["embedding"]), np.asarray(params["trunk"]["embedding"])
    assert new.shape == (24, 16)  # the two spare rows were enough
    np.testing.assert_array_equal(new[:22], old[:22])
    np.testing.assert_allclose(new[22:], np.repeat(old[:22].mean(0)[None], 2, 0), atol=1e-6)
    head = np.asarray(plain["lm_head"]["kernel"])[:, :22].mean(1)
    np.testing.assert_allclose(params["lm_head"]["kernel"][:, 22], head, atol=1e-6)
    assert (meta.stage, meta.kind, meta.complete) == ("huggingface", "language_model", True)
    assert meta.tokenizer == tokenizer.fingerprint()
    assert read_meta(path) == meta
    assert (
        load(path, kind="language_model", option="--checkpoint").tokenizer.fingerprint()
        == meta.tokenizer
    )


def test_a_vocabulary_without_spare_rows_grows(foreign):
    content = json.loads((foreign / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {"w22": 22, "w23": 23}
    (foreign / "tokenizer.json").write_text(json.dumps(content))
    params, meta = load_model(f"hf:{foreign}")
    assert from_dict(meta.model).vocab_size == 26
    assert params["trunk"]["embedding"].shape == (26, 16)
    assert params["lm_head"]["kernel"].shape == (16, 26)
    content["model"]["vocab"]["w24"] = 24
    (foreign / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match="tokenizer has ids up to 24, but its model has vocab_size=24: put"
    ):
        load_model(f"hf:{foreign}")


def test_a_special_token_without_a_row_gets_one(foreign, capsys):
    """As in Gemma 3's 1B, where <image_soft_token> has the id after the embedding's last."""
    _, plain = load_pretrained(foreign, kind="language_model", **FLOAT32)
    content = json.loads((foreign / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {"w22": 22, "w23": 23}
    image = content["added_tokens"][0] | {"id": 24, "content": "<image_soft_token>"}
    content["added_tokens"].append(image)
    (foreign / "tokenizer.json").write_text(json.dumps(content))
    (params, meta), tokenizer = load_model(f"hf:{foreign}"), read_tokenizer(f"hf:{foreign}")
    assert (
        "<image_soft_token>: special, but without a row in the embedding" in capsys.readouterr().out
    )
    assert (from_dict(meta.model).vocab_size, tokenizer.user_id) == (27, 25)
    old, new = np.asarray(plain["trunk"]["embedding"]), np.asarray(params["trunk"]["embedding"])
    np.testing.assert_array_equal(new[:24], old)
    np.testing.assert_allclose(new[24:], np.repeat(old.mean(0)[None], 3, 0), atol=1e-6)
    content["added_tokens"][-1] = image | {"special": False}
    (foreign / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match="tokenizer has ids up to 24, but its model has vocab_size=24: put"
    ):
        load_model(f"hf:{foreign}")


def test_ids_with_gaps_are_counted_up_to_the_highest(foreign):
    _, plain = load_pretrained(foreign, kind="language_model", **FLOAT32)
    content = json.loads((foreign / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    del vocab["w9"]
    vocab["last"] = 23  # the last row of the model
    (foreign / "tokenizer.json").write_text(json.dumps(content))
    (params, meta), tokenizer = load_model(f"hf:{foreign}"), read_tokenizer(f"hf:{foreign}")
    assert (tokenizer.user_id, tokenizer.assistant_id, tokenizer.num_ids) == (
        24,
        25,
        from_dict(meta.model).vocab_size,
    )
    old, new = np.asarray(plain["trunk"]["embedding"]), np.asarray(params["trunk"]["embedding"])
    np.testing.assert_array_equal(new[:24], old)
    np.testing.assert_allclose(new[24:], np.repeat(old.mean(0)[None], 2, 0), atol=1e-6)
    vocab["last"] = 24
    (foreign / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match="tokenizer has ids up to 24, but its model has vocab_size=24"
    ):
        load_model(f"hf:{foreign}")


def test_a_name_that_the_hub_does_not_give_is_an_error_with_a_remedy(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        FileNotFoundError, match=r"hub:org/name: .*ConnectionError: no route\).*name hf:FOLDER"
    ):
        load_model("hub:org/name")


COMMITS = ("a" * 40, "b" * 40)


class Hub:
    """A hub of one repository, `org/name`, with two commits; it remembers what it was asked for."""

    def __init__(self, root, folder):
        self.snapshots = [
            Path(shutil.copytree(folder, root / "snapshots" / commit)) for commit in COMMITS
        ]
        self.newest = 0
        self.here = False  # whether it has been downloaded
        self.asked = []

    def snapshot_download(self, name, *, revision, allow_patterns, local_files_only):
        assert not any(".bin" in pattern or ".py" in pattern for pattern in allow_patterns)
        self.asked.append((name, revision, local_files_only))
        if name != "org/name" or (local_files_only and not self.here):
            raise huggingface_hub.errors.LocalEntryNotFoundError("nothing here")
        self.here = True
        number = self.newest if revision is None else COMMITS.index(revision)
        return str(self.snapshots[number])


@pytest.fixture
def hub(foreign, tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub", foreign)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_a_local_folder_is_never_looked_up_on_the_hub(hub, foreign, tmp_path, monkeypatch):
    monkeypatch.chdir(foreign.parent)
    assert load_model("hf:foreign")[1].extra == {"source": "hf:foreign"}
    monkeypatch.chdir(tmp_path.parent)
    for load_any in (load_model, read_meta, read_tokenizer):
        with pytest.raises(
            FileNotFoundError, match=r"hf:org/name: no such folder, seen from .* named hub:ORG/NAME"
        ):
            load_any("hf:org/name")
    assert hub.asked == []


def test_the_commit_of_a_model_of_the_hub_is_recorded(hub, foreign, tmp_path):
    bases = {}
    params, meta = load_model("hub:org/name", bases=bases)
    assert meta.extra == {"source": f"hub:org/name@{COMMITS[0]}", "revision": COMMITS[0]}
    assert meta.fingerprint == read_meta(f"hf:{foreign}").fingerprint
    # Loaded once, by whatever name.
    assert load_model(f"hub:org/name@{COMMITS[0]}", bases=bases)[0] is params
    assert load_model(f"hub:org/name@{COMMITS[1]}", bases=bases)[0] is not params
    assert read_tokenizer("hub:org/name").fingerprint() == meta.tokenizer
    link = describe_link(tmp_path / "run", "hub:org/name", meta, LORA)["lora"]
    assert link["base"] == f"hub:org/name@{COMMITS[0]}"
    assert checkpoints.lineage_entry("hub:org/name", meta)["revision"] == COMMITS[0]


def begin(workdir):
    """Load the parent of a run, and save the run's first checkpoint if there is none."""
    plain = MeshConfig(1, 1, 1, 10**9, *["as_trained"] * 4)
    run = Run("sft", workdir, make_mesh(1, 1, 1), plain, None, MetricsWriter(workdir))
    parent = run.parent("policy", "hub:org/name", kind=CheckpointKind.LANGUAGE_MODEL)
    meta = run.describe(CheckpointKind.LANGUAGE_MODEL, 5, parent.model)
    if checkpoints.latest_step(workdir) is None:
        checkpoints.save(workdir, 1, parent.params, {"step": 1}, meta, keep=1)
    return parent.meta.extra["revision"]


def test_a_run_goes_on_with_the_commit_that_it_began_with(hub, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    workdir.mkdir()
    assert begin(workdir) == COMMITS[0]
    assert checkpoints.read_meta(workdir).lineage["policy"]["revision"] == COMMITS[0]
    hub.newest = 1
    assert begin(workdir) == COMMITS[0]
    assert hub.asked[-1][1] == COMMITS[0]
    # The weights are the same, the commit is not.
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: str(hub.snapshots[1])
    )
    both = f"at revision {COMMITS[0]}, but hub:org/name is now of revision {COMMITS[1]}"
    with pytest.raises(ValueError, match=both):
        begin(workdir)


def test_a_base_on_the_hub_that_a_file_names_is_not_downloaded(hub, foreign, tmp_path):
    base, meta = load_model(f"hf:{foreign}")
    _, trained = init_adapters(base, LORA, jax.random.key(0))
    source = f"hub:org/name@{COMMITS[0]}"
    child = checkpoints.Meta(
        stage="sft",
        kind=meta.kind,
        num_steps=3,
        model=meta.model,
        tokenizer=meta.tokenizer,
        lineage={},
        extra=link_to_base(source, meta.fingerprint, LORA),
    )
    checkpoints.save(tmp_path / "run", 3, trained, {"step": 3}, child, keep=1)
    save_peft(tmp_path / "peft", trained, LORA, from_dict(meta.model), base_name="org/name")
    refusal = "not on this machine, and only what you name yourself is downloaded"
    command = f"run `hf download org/name --revision {COMMITS[0]}`"
    with pytest.raises(FileNotFoundError, match=f"{source}: {refusal}; if you trust it, {command}"):
        load_model(tmp_path / "run")
    with pytest.raises(
        FileNotFoundError, match=f"org/name: no such folder, and as a model of the hub .*{refusal}"
    ):
        load_model(f"hf:{tmp_path / 'peft'}")
    assert all(local_only for _, _, local_only in hub.asked)
    load_model("hub:org/name")
    on_base = load_model(tmp_path / "run")[0]
    params, peft_meta = load_model(f"hf:{tmp_path / 'peft'}")
    jax.tree.map(np.testing.assert_array_equal, on_base, params)
    assert peft_meta.extra["lora"]["base"] == source
    assert read_tokenizer(f"hf:{tmp_path / 'peft'}").fingerprint() == meta.tokenizer


def test_a_local_base_is_found_from_another_folder(foreign, tmp_path, monkeypatch):
    monkeypatch.chdir(foreign.parent)
    meta = read_meta("hf:foreign")
    assert describe_link(tmp_path, "hf:foreign", meta, LORA)["lora"]["base"] == f"hf:{foreign}"


# --- adapters in the files of PEFT ----------------------------------------------------------------


@pytest.fixture
def adapters(foreign, tmp_path):
    """Adapters for `foreign` in the files of PEFT, and their leaves."""
    base, meta = load_model(f"hf:{foreign}")
    _, trained = init_adapters(base, LORA, jax.random.key(0))
    trained = jax.tree.map(lambda leaf: leaf + 0.1, trained)
    shape = from_dict(meta.model)
    save_peft(tmp_path / "adapters", trained, LORA, shape, base_name=str(foreign))
    return tmp_path / "adapters", trained


def test_adapters_of_peft_stand_on_the_base_that_they_name(foreign, adapters):
    folder, trained = adapters
    bases = {}
    params, meta = load_model(f"hf:{folder}", bases=bases)
    base, base_meta = load_model(f"hf:{foreign}", bases=bases)
    assert params["trunk"]["embedding"] is base["trunk"]["embedding"]
    jax.tree.map(np.testing.assert_array_equal, partition(params)[1], trained)
    assert describe_adapters(params) == LORA
    expected = combine(add_scales(base, trained, 2.0), trained)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert (meta.stage, meta.kind, meta.complete) == ("huggingface", "language_model", True)
    assert meta.model == base_meta.model
    assert meta.extra["lora"] == {
        "base": f"hf:{foreign}",
        "fingerprint": base_meta.fingerprint,
        "rank": 2,
        "alpha": 4.0,
        "modules": ["query", "up"],
    }
    # Without a tokenizer of their own, that of the base.
    assert read_tokenizer(f"hf:{folder}").fingerprint() == base_meta.tokenizer == meta.tokenizer
    assert read_meta(f"hf:{folder}") == meta
    assert meta.fingerprint != base_meta.fingerprint


def test_a_run_may_go_on_training_adapters_of_peft(foreign, adapters, tmp_path):
    path = f"hf:{adapters[0]}"
    meta = read_meta(path)
    link = describe_link(tmp_path / "run", path, meta, LORA)
    assert link == {"lora": meta.extra["lora"]}
    child = checkpoints.Meta(
        stage="sft",
        kind=meta.kind,
        num_steps=3,
        model=meta.model,
        tokenizer=meta.tokenizer,
        lineage={},
        extra=link,
    )
    checkpoints.save(tmp_path / "run", 3, adapters[1], {"step": 3}, child, keep=1)
    jax.tree.map(
        np.testing.assert_array_equal, load_model(tmp_path / "run")[0], load_model(path)[0]
    )


def test_adapters_of_peft_with_their_own_tokenizer(foreign, adapters, tmp_path):
    folder, _ = adapters
    large = train_words([" ".join(f"x{i}" for i in range(40))])
    for name, tokenizer in (("same", read_tokenizer(f"hf:{foreign}")), ("small", TOKENIZER)):
        own = Path(shutil.copytree(folder, tmp_path / name))
        tokenizer.save(own)
        assert load_model(f"hf:{own}")[1].tokenizer == tokenizer.fingerprint()
    large.save(folder)
    with pytest.raises(ValueError, match=r"adapters has ids up to \d+, but .* vocab_size=24"):
        load_model(f"hf:{folder}")


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (None, "base_model_name_or_path = None: expected the folder or the hub's name"),
        ("{folder}", "is a language_model with adapters, expected a language model"),
        ("{score}", "is a scalar_model, expected a language model"),
    ],
)
def test_adapters_of_peft_without_a_plain_base_are_refused(
    foreign, adapters, tmp_path, base, message
):
    folder, _ = adapters
    outer = Path(shutil.copytree(folder, tmp_path / "outer"))
    score = Path(shutil.copytree(golden.FOLDER / "score-llama", tmp_path / "score"))
    read_tokenizer(f"hf:{foreign}").save(score)
    names = {"folder": folder, "score": score}
    config = json.loads((outer / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base and base.format(**names)
    (outer / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_model(f"hf:{outer}")


# --- our checkpoints as models of Hugging Face ----------------------------------------------------


def run_folder(workdir, model):
    params = init_params(model, jax.random.key(0))
    if "head" in params:
        params["head"]["bias"] = jnp.asarray([0.5])
    meta = checkpoints.Meta(
        stage="sft",
        kind=CheckpointKind.SCALAR_MODEL if "head" in params else CheckpointKind.LANGUAGE_MODEL,
        num_steps=3,
        model=to_dict(model.config),
        tokenizer=TOKENIZER.fingerprint(),
        lineage={},
    )
    checkpoints.save(workdir, 3, params, {"step": 3}, meta, keep=1)
    TOKENIZER.save(workdir / "tokenizer")
    return params


@pytest.mark.parametrize("kind", [LanguageModel, ScalarModel])
def test_an_exported_checkpoint_is_a_parent_with_the_same_parameters(tmp_path, capsys, kind):
    config = gpt(
        vocab_size=TOKENIZER.vocab_size,
        context_length=8,
        width=8,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        **FLOAT32,
        remat="none",
    )
    params = run_folder(tmp_path / "run", kind(config))
    arguments = [f"--checkpoint={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"]
    assert export.main(arguments) == 0
    assert "config.json, model.safetensors, tokenizer.json" in capsys.readouterr().out
    again, meta = load_model(f"hf:{tmp_path / 'out'}")
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert (meta.kind, from_dict(meta.model)) == (
        checkpoints.read_meta(tmp_path / "run").kind,
        config,
    )
    assert load_tokenizer(tmp_path / "out").fingerprint() == TOKENIZER.fingerprint()
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [written[f"{name}_token_id"] for name in ("eos", "pad", "bos")] == [
        TOKENIZER.eos_id,
        TOKENIZER.pad_id,
        None,
    ]
    assert export.main(arguments) == 2
    assert "already: name a new folder" in capsys.readouterr().err
    assert export.main([f"--checkpoint={tmp_path / 'nowhere'}", f"--to={tmp_path / 'other'}"]) == 2
