"""What lies beside exported weights: stops, chat template, model card; and the way to the hub."""

import json

import huggingface_hub
import jax
import numpy as np
import pytest
from templates_support import byte_level, llama3, metaspace
from transformers import AutoTokenizer

from rlhf_jax.apps import export
from rlhf_jax.data.chat import render
from rlhf_jax.data.records import Message
from rlhf_jax.data.tokenizers import load_tokenizer, train_bpe, train_words, with_chat_tokens
from rlhf_jax.evaluation.estimates import Estimate
from rlhf_jax.evaluation.table import Row, row_to_json
from rlhf_jax.models import LanguageModel, ScalarModel, gpt, init_params, to_dict
from rlhf_jax.training import checkpoints

WORDS = ["the fox is red and the cat is not", "why is it so"]
DIALOGUE = [
    Message("user", "why is it so?"),
    Message("assistant", "the fox is red.\n"),
    Message("user", " 2 + 2"),
]


def run_folder(workdir, tokenizer, kind=LanguageModel, **meta):
    """A run of one checkpoint; returns its description."""
    sizes = {"context_length": 16, "width": 8, "num_layers": 1, "num_heads": 2}
    dtypes = {"compute_dtype": "float32", "param_dtype": "float32"}
    model = gpt(vocab_size=tokenizer.num_ids, **sizes, **dtypes, dropout_rate=0.0, remat="none")
    params = init_params(kind(model), jax.random.key(0))
    described = checkpoints.Meta(
        stage="sft",
        kind="scalar_model" if "head" in params else "language_model",
        num_steps=3,
        model=to_dict(model),
        tokenizer=tokenizer.fingerprint(),
        lineage=meta.get("lineage", {}),
    )
    tokenizer.save(workdir / "tokenizer")
    return checkpoints.save(workdir, 3, params, {"step": 3}, described, keep=1)


def exported(tmp_path, tokenizer, *options, **meta):
    run_folder(tmp_path / "runs" / "sft", tokenizer, **meta)
    folder = tmp_path / "out"
    arguments = [f"--checkpoint={tmp_path / 'runs' / 'sft'}", f"--to={folder}", *options]
    assert export.main(arguments) == 0
    return folder


def foreign(make=byte_level, **options):
    return with_chat_tokens(make(["<s>", "</s>"], None, eos="</s>", bos="<s>", **options))


TOKENIZERS = {
    "words": lambda: train_words(WORDS),
    "bytes": lambda: train_bpe(WORDS, 300),
    "begin-of-text": lambda: foreign(adds_bos=True),
    "more stops": lambda: foreign(more_stops=(5,)),
    "sentencepiece": lambda: foreign(metaspace, scheme="always", adds_bos=True),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_transformers_writes_our_markers_with_the_exported_template(tmp_path, name):
    tokenizer = TOKENIZERS[name]()
    folder = exported(tmp_path, tokenizer)
    theirs = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": message.role, "content": message.content} for message in DIALOGUE]
    for messages, prompt in (3, True), (2, False), (1, True):
        ids = theirs.apply_chat_template(
            chat[:messages], add_generation_prompt=prompt, return_dict=False
        )
        assert ids == render(tokenizer, DIALOGUE[:messages], generation_prompt=prompt).ids
    with pytest.raises(Exception, match="the markers know two roles"):
        theirs.apply_chat_template([{"role": "system", "content": "be kind"}])
    # Read again it is the tokenizer that it was, whose markers no letters can spell.
    again = load_tokenizer(folder)
    assert again.template is None
    assert (again.fingerprint(), again.stop_ids) == (tokenizer.fingerprint(), tokenizer.stop_ids)
    stops = json.loads((folder / "generation_config.json").read_text())
    assert stops["eos_token_id"] == list(tokenizer.stop_ids)
    assert stops["pad_token_id"] == tokenizer.pad_id


def test_a_template_that_gives_other_ids_is_not_written(tmp_path, capsys):
    """SentencePiece's scheme "first" puts a space before the first word of a text alone."""
    folder = exported(tmp_path, foreign(metaspace, scheme="first"))
    assert not (folder / "chat_template.jinja").exists()
    assert "no chat_template.jinja: with this tokenizer transformers" in capsys.readouterr().out


def test_every_stop_of_a_foreign_tokenizer_is_exported(tmp_path):
    tokenizer = llama3()
    folder = exported(tmp_path, tokenizer)
    stops = json.loads((folder / "generation_config.json").read_text())
    names = ["<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"]
    assert stops["eos_token_id"] == tokenizer.fast.convert_tokens_to_ids(names)
    assert load_tokenizer(folder).template.source == tokenizer.template.source


def test_transformers_stops_where_we_do(tmp_path):
    torch = pytest.importorskip(
        "torch", reason="runs transformers, which needs torch: pip install rlhf_jax[torch]"
    )
    from transformers import AutoModelForCausalLM

    tokenizer = foreign(more_stops=(5, 6, 7))
    folder = exported(tmp_path, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.generation_config.eos_token_id == list(tokenizer.stop_ids)
    prompt = torch.tensor([render(tokenizer, DIALOGUE[:1], generation_prompt=True).ids[-8:]])
    with torch.no_grad():
        row = model(prompt).logits[0, -1]
    # The likeliest token becomes a stop: generation ends with it.
    model.generation_config.eos_token_id = [tokenizer.eos_id, int(row.argmax())]
    assert model.generate(prompt, do_sample=False, max_new_tokens=5).shape[1] == 9


# --- the model card -------------------------------------------------------------------------------


def test_the_card_says_what_from_what_on_which_data_and_how_good(tmp_path, capsys):
    lineage = {
        "policy": {
            "path": "hub:org/name",
            "stage": "huggingface",
            "step": 0,
            "fingerprint": "f00d",
            "revision": "a" * 40,
        },
        "reward": {"path": "../reward", "stage": "reward", "step": 7, "fingerprint": "beef"},
    }
    tokenizer = train_words(WORDS)
    workdir = tmp_path / "runs" / "sft"
    meta = run_folder(workdir, tokenizer, lineage=lineage)
    source = "jsonl:/home/me/secret/rows.jsonl?by=prompt"
    data = {"demonstrations": source, "comparisons": "", "other": "hh@json:../up/rows.json"}
    (workdir / "config.json").write_text(json.dumps({"stage": "sft", "config": {"data": data}}))
    values = {"mine": Estimate(0.25, 0.125, 0.5, 9), "base": Estimate(1.0, 1.0, float("inf"), 9)}
    table = [
        row_to_json(Row("answers", "right", "SD", "higher", "", values)),
        row_to_json(Row("answers", "of others", "", "higher", "", {"base": values["base"]})),
    ]
    for name, fingerprint in (("evaluate", meta.fingerprint), ("another", "else")):
        refs = {"mine": {"fingerprint": fingerprint}, "base": {"fingerprint": "b"}}
        content = {"checkpoints": refs, "reference": "base", "table": table}
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "evaluation.json").write_text(json.dumps(content))
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "evaluation.json").write_text("[")
    assert export.main([f"--checkpoint={workdir}", f"--to={tmp_path / 'out'}"]) == 0
    assert "damaged/evaluation.json: no results of an evaluation" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\nbase_model:\n- org/name\n"
        "tags:\n- rlhf\n- sft\n---\n\n# sft\n\nA language model of "
    )
    for line in (
        f"stage `sft`, step 3 of 3 (fingerprint `{meta.fingerprint}`).",
        "| policy | hub:org/name | huggingface | 0 | `f00d` |",
        "| reward | reward | reward | 7 | `beef` |",
        "| demonstrations | `jsonl:rows.jsonl?by=prompt` |",
        "| other | `hh@json:rows.json` |",
        "Measured as `mine` in `evaluate`;",
        "| metric | mine | base |",
        "| answers: right [SD] | 0.250 [0.125, 0.500] | 1.000 |",
    ):
        assert line in card, line
    assert "secret" not in card
    assert "of others" not in card
    assert "another" not in card


def test_the_card_of_a_reward_model_and_of_a_folder(tmp_path):
    folder = exported(tmp_path, train_words(WORDS), kind=ScalarModel)
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "A reward model of" in card
    assert "It was trained from scratch." in card
    assert not (folder / "generation_config.json").exists()
    again = [f"--checkpoint=hf:{folder}", f"--to={tmp_path / 'again'}"]
    assert export.main(again) == 0
    assert "# hf:out\n" in (tmp_path / "again" / "README.md").read_text()


# --- the hub --------------------------------------------------------------------------------------


def test_a_folder_is_pushed_to_the_hub(tmp_path, monkeypatch, capsys):
    calls = []

    class Api:
        def create_repo(self, name, *, private, exist_ok):
            calls.append(("create", name, private, exist_ok))

        def upload_folder(self, *, folder_path, repo_id):
            calls.append(("upload", folder_path, repo_id))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    folder = exported(tmp_path, train_words(WORDS), "--push_to=org/name")
    assert calls == [("create", "org/name", True, True), ("upload", str(folder), "org/name")]
    assert "pushed to https://huggingface.co/org/name" in capsys.readouterr().out

    def refuse(*_, **__):
        raise PermissionError("401 Unauthorized\nmore")

    monkeypatch.setattr(Api, "upload_folder", refuse)
    arguments = [f"--checkpoint={tmp_path / 'runs' / 'sft'}", f"--to={tmp_path / 'b'}"]
    assert export.main([*arguments, "--push_to=org/name"]) == 2
    error = capsys.readouterr().err
    assert "--push_to=org/name: PermissionError: 401 Unauthorized;" in error
    assert f"run `hf upload org/name {tmp_path / 'b'}`" in error
    assert export.main([*arguments, "--push_to=name"]) == 2
    assert "--push_to=name: expected ORG/NAME" in capsys.readouterr().err


def test_weights_survive(tmp_path):
    from rlhf_jax.training.pretrained import load_model

    folder = exported(tmp_path, train_words(WORDS))
    params = load_model(tmp_path / "runs" / "sft")[0]
    jax.tree.map(np.testing.assert_array_equal, load_model(f"hf:{folder}")[0], params)
