"""Models of other makes, tokenizers and vocabularies side by side, judged by a function: no world.

The policies are a run of ours with words as tokens, and a folder of Hugging Face's with bytes; the
reward model has a third tokenizer.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from evaluation_support import WORDS, config, prompt, save_run, words
from ml_collections import ConfigDict

from experiments.public.evaluate import compare
from rlhf_jax import main
from rlhf_jax.data.records import Document
from rlhf_jax.data.sources import write_jsonl
from rlhf_jax.data.tokenizers import train_bpe, train_words
from rlhf_jax.evaluation import measurements
from rlhf_jax.evaluation.checkpoints import find_checkpoint, load_scalar_model
from rlhf_jax.evaluation.likelihood import scores, text_continuations
from rlhf_jax.evaluation.measurements import restore_responses
from rlhf_jax.models import LanguageModel, ScalarModel, init_params, llama
from rlhf_jax.models.huggingface import save_pretrained

PROMPTS = [
    prompt(text, kind=kind)
    for text, kind in (
        ("what is red?", "ask"),
        ("the fox is red.", "tell"),
        ("what?", "ask"),
        ("blue owl", "tell"),
        ("what colour is the green bear? you dolt", "ask"),  # 39 bytes: too long for some
    )
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    save_run(folder / "sft", "sft", LanguageModel(config(words().vocab_size)), words(), seed=0)
    other = train_words([WORDS, " " + WORDS, "zebra"])
    save_run(folder / "reward", "reward", ScalarModel(config(other.vocab_size)), other, seed=1)
    for seed, name in enumerate(("bytes", "second")):
        save_folder(folder / name, seed)
    write_jsonl(folder / "prompts.jsonl", PROMPTS)
    write_jsonl(folder / "documents.jsonl", [Document("the fox is red.")] * 8)
    (folder / "judges.py").write_text(
        "def brief(prompts, responses, metadata=None):\n"
        "    return _each(responses, metadata, lambda text: -len(text))\n\n\n"
        "def vowels(prompts, responses, metadata=None):\n"
        "    return _each(responses, metadata, lambda text: sum(map(text.count, 'aeiou')))\n\n\n"
        "def _each(responses, metadata, score):\n"
        "    return score(responses) if metadata is None else [score(text) for text in responses]\n"
    )
    return folder


def save_folder(folder: Path, seed: int) -> None:
    """A model as it comes from the hub: bytes as tokens, the chat markers among them."""
    tokenizer = train_bpe([WORDS], 260)
    shape = llama(
        vocab_size=tokenizer.num_ids,
        context_length=64,
        width=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        ffw_width=16,
        rope_base=10_000.0,
        dropout_rate=0.0,
        remat="none",
        compute_dtype="float32",
        param_dtype="float32",
    )
    params = jax.tree.map(lambda x: 4 * x, init_params(LanguageModel(shape), jax.random.key(seed)))
    ids = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    kind = "language_model"
    save_pretrained(folder, shape, params, kind=kind, token_ids=ids, max_shard_bytes=1 << 20)
    tokenizer.save(folder)


def ten_lines(runs: Path, **changes) -> ConfigDict:
    """The config that a user writes, made small by a few fields."""
    settings = compare(
        {"ours": f"{runs}/sft", "theirs": f"hf:{runs}/bytes"},
        reference="ours",
        prompts=f"jsonl:{runs}/prompts.jsonl",
        split="train",
        judges={"brevity": f"function:{runs}/judges.py:brief"},
    )
    settings.data.prompt_length = 30
    sizes = {"num_prompts": 4, "response_length": 6, "batch_size": 4, "num_bootstrap": 50}
    settings.evaluation.update(sizes | {"samples_per_prompt": 2})
    settings.update(changes)
    return settings


def read(folder: Path):
    result = json.loads((folder / "evaluation.json").read_text())
    return result, {row["metric"]: row for row in result["table"]}


def read_samples(folder: Path):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def result(runs):
    settings = ten_lines(runs)
    settings.reward = "../reward"
    settings.fluency = f"hf:{runs}/second"
    settings.judges.vowels = f"function:{runs}/judges.py:vowels"
    settings.data.documents = (
        f"jsonl:{runs}/documents.jsonl?train=train[:50%]&validation=train[50%:]"
    )
    settings.evaluation.update({"best_of": 2, "reward_details": True, "corpus_documents": 4})
    settings.evaluation.document_length = 32
    main.run(settings, str(runs / "evaluate"))
    return read(runs / "evaluate")


def test_ten_lines_compare_a_run_with_a_folder_of_another_tokenizer(runs, capsys):
    main.run(ten_lines(runs), str(runs / "short"))
    out = capsys.readouterr().out
    assert "prompts: 1 of 5 records dropped: 1" in out
    assert "theirs       divergence               left out: not the reference's tokenizer" in out
    result, rows = read(runs / "short")
    rate = rows["preferred to ours, brevity"]["values"]["theirs"]
    samples = read_samples(runs / "short")
    assert len(samples) == 4
    wins = [
        0.5 + 0.5 * np.sign(len(a["text"]) - len(b["text"]))
        for sample in samples
        for a, b in zip(sample["responses"]["ours"], sample["responses"]["theirs"], strict=True)
    ]
    assert (rate["value"], rate["n"]) == (pytest.approx(np.mean(wins)), 8)
    assert rate["low"] <= rate["value"] <= rate["high"]
    ties = rows["tied with ours, brevity"]["values"]["theirs"]["value"]
    assert ties == np.mean(np.array(wins) == 0.5)
    assert rows["KL from ours"]["values"] == {}
    assert set(result["samples"][0]["responses"]) == {"ours", "theirs"}


def test_kinds_of_prompt_have_rows_where_prompts_have_kinds(runs, result):
    _, rows = result
    by_kind = [f"preferred to ours, brevity, {kind}" for kind in ("ask", "tell")]
    values = [rows[title]["values"]["theirs"] for title in by_kind]
    assert [value["n"] for value in values] == [4, 4]
    whole = rows["preferred to ours, brevity"]["values"]["theirs"]["value"]
    assert np.mean([value["value"] for value in values]) == pytest.approx(whole)
    write_jsonl(runs / "plain.jsonl", [prompt("what?"), prompt("blue owl")])
    settings = ten_lines(runs)
    settings.data.prompts = f"jsonl:{runs}/plain.jsonl"
    settings.evaluation.num_prompts = 2
    main.run(settings, str(runs / "plain"))
    assert not [metric for metric in read(runs / "plain")[1] if metric.endswith(("ask", "tell"))]


def test_a_reward_model_of_another_tokenizer_scores_texts(runs, result):
    data = json.loads((runs / "evaluate" / "partial" / "theirs-responses.json").read_text())["data"]
    reward = find_checkpoint(runs, f"{runs}/reward")
    tokenizer = train_words([WORDS, " " + WORDS, "zebra"])
    groups = text_continuations(tokenizer, PROMPTS[:4], restore_responses(data))
    items = [item for group in groups for item in group]
    expected = scores(*load_scalar_model(reward), items, batch_size=4)
    value = result[1]["score of the responses"]["values"]["theirs"]["value"]
    assert value == pytest.approx(expected.mean(), abs=1e-5)
    assert set(result[0]["controls"]) == {"best_of_2"}


def test_the_loss_is_per_byte_where_tokenizers_differ(runs, result):
    loss = result[1]["pretraining loss"]
    assert loss["unit"] == "nats/byte"
    kept = json.loads((runs / "evaluate" / "partial" / "theirs-corpus.json").read_text())["data"]
    assert kept["bytes"] == 4 * len("the fox is red.")
    assert loss["values"]["theirs"]["value"] == pytest.approx(sum(kept["nll"]) / kept["bytes"])


def test_fluency_is_the_same_text_per_token_word_and_byte(runs, result):
    rows = result[1]
    for name in ("ours", "theirs", "best_of_2"):
        path = runs / "evaluate" / "partial" / f"{name}-fluency.json"
        kept = {k: np.sum(v) for k, v in json.loads(path.read_text())["data"].items()}
        for per in ("token", "word", "byte"):
            perplexity = rows[f"perplexity per {per}"]["values"][name]["value"]
            assert perplexity == pytest.approx(np.exp(kept["nll"] / kept[f"{per}s"]), rel=1e-6)
    texts = read_samples(runs / "evaluate")
    letters = sum(len(s["text"].encode()) for t in texts for s in t["responses"]["ours"])
    kept = json.loads((runs / "evaluate" / "partial" / "ours-fluency.json").read_text())["data"]
    assert np.sum(kept["bytes"]) == letters


def test_reward_accuracy_stands_beside_what_needs_no_reward_model(result):
    rows = [row for row in result[0]["table"] if row["key"] == "reward_accuracy"]
    subjects = {(row["judge"], row["subject"]) for row in rows}
    rivals = ("reward model", "mean log-probability", "log-probability", "the shorter", "chance")
    for rival in rivals:
        for kind in ("", "/ask", "/tell"):
            assert ("brevity", rival + kind) in subjects
    shorter = result[1]["the shorter against brevity"]["values"]
    assert [shorter[name]["value"] for name in ("ours", "theirs")] == [1.0, 1.0]


def test_a_killed_evaluation_continues_and_another_second_model_measures_anew(
    runs, result, monkeypatch, capsys
):
    def killed(*arguments):
        raise KeyboardInterrupt

    settings = ten_lines(runs)
    settings.fluency = f"hf:{runs}/second"
    with monkeypatch.context() as patch:
        patch.setitem(measurements.MEASUREMENTS, "fluency", killed)
        with pytest.raises(KeyboardInterrupt):
            main.run(settings, str(runs / "killed"))
    capsys.readouterr()
    main.run(settings, str(runs / "killed"))
    assert capsys.readouterr().out.count(" kept\n") == 1  # ours-responses
    settings.fluency = f"hf:{runs}/bytes"
    main.run(settings, str(runs / "killed"))
    kept = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if "kept" in line]
    assert kept == [["ours", "responses"], ["theirs", "responses"]]


def test_another_template_of_the_same_weights_measures_anew(runs, capsys):
    folder = Path(shutil.copytree(runs / "bytes", runs / "changed"))
    settings = ten_lines(runs)
    settings.checkpoints.theirs = f"hf:{folder}"
    main.run(settings, str(runs / "template"))
    path = folder / "tokenizer_config.json"
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<|user|> {{ m['content'] }}"
        "{% else %}<|assistant|>{{ m['content'] }}<|eos|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    changed = json.loads(path.read_text()) | {"chat_template": template}
    path.write_text(json.dumps(changed))
    capsys.readouterr()
    main.run(settings, str(runs / "template"))
    kept = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if "kept" in line]
    assert kept == [["ours", "responses"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fluency": "../reward"}, r"fluency: \.\./reward is a scalar_model .*a language_model"),
        ({"reward": "../sft"}, r"reward: \.\./sft is a language_model .*a scalar_model"),
    ],
)
def test_readers_of_the_wrong_kind_are_refused(runs, changes, message):
    with pytest.raises(ValueError, match=message):
        main.run(ten_lines(runs, **changes), str(runs / "refused"))


def test_details_need_a_reward_model(runs):
    settings = ten_lines(runs)
    settings.evaluation.reward_details = True
    with pytest.raises(ValueError, match=r"reward_details=True: reward=None; name a reward model"):
        main.run(settings, str(runs / "refused"))


def test_judges_of_ones_own_choose_the_best_of_n(runs, tmp_path):
    """Brevity chooses short answers, its opposite long ones, and the two together neither."""
    judges = {"brevity": f"function:{runs}/judges.py:brief"}
    means = {}
    for name, weight in (("short", 1.0), ("long", -1.0)):
        config = ten_lines(runs, judges=judges, best_by={"brevity": weight})
        config.evaluation.best_of = 8
        main.run(config, str(tmp_path / name))
        result, _ = read(tmp_path / name)
        assert result["controls"]["best_of_8"]["description"] == (
            f"the best of 8 answers of the reference by {weight:g} x brevity"
        )
        for key, column in ((name, "best_of_8"), ("plain", "ours")):
            rows = [row["responses"][column] for row in read_samples(tmp_path / name)]
            means[key] = np.mean([len(sample["text"]) for row in rows for sample in row])
    assert means["short"] < means["plain"] < means["long"]


@pytest.mark.parametrize(
    ("best_by", "message"),
    [
        ({"brevty": 1.0}, "best_by: 'brevty' is no judge; judges has brevity"),
        ({}, "evaluation.best_of=4: reward=None, and nothing else chooses among responses"),
    ],
)
def test_who_chooses_has_to_be_named(runs, tmp_path, best_by, message):
    config = ten_lines(runs, best_by=best_by)
    config.evaluation.best_of = 4
    with pytest.raises(ValueError, match=message):
        main.run(config, str(tmp_path / "x"))
