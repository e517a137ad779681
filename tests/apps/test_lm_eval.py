"""The command line of lm-evaluation-harness: what is put in, and its numbers beside our own."""

import json
import sys

import numpy as np
import pytest
from evaluation_support import WORDS, config, drawn_params

from rlhf_jax.apps import lm_eval as app
from rlhf_jax.data.chat import render
from rlhf_jax.data.records import Message
from rlhf_jax.data.tokenizers import train_words
from rlhf_jax.evaluation.benchmarks import truthfulqa
from rlhf_jax.evaluation.checkpoints import find_checkpoint, load_language_model, load_tokenizer_of
from rlhf_jax.evaluation.likelihood import Continuation, continuation_logps
from rlhf_jax.models import LanguageModel, to_dict
from rlhf_jax.training.checkpoints import Meta, save

needs_harness = pytest.mark.skipif(
    not app.is_installed(), reason="needs pip install 'rlhf_jax[lm_eval]'"
)
QUESTIONS = """Category,Question,Best Answer,Correct Answers,Incorrect Answers
Plants,what colour is the fox ?,red,red; the fox is red,blue; green
Plants,what colour is the owl ?,blue,blue; the owl is blue,red; the owl is red; green
Law,what is the bear ?,green,green,red; blue
"""


def test_the_subcommand_and_the_model_are_put_in_where_they_are_missing():
    assert app.complete_arguments(["--tasks", "x"]) == [
        *("run", "--model", "rlhf_jax", "--tasks", "x")
    ]
    assert app.complete_arguments(["run", "--model=hf", "--tasks", "x"]) == [
        *("run", "--model=hf", "--tasks", "x")
    ]
    assert app.complete_arguments(["run", "-C", "x.yaml"]) == ["run", "-C", "x.yaml"]
    assert app.complete_arguments(["ls", "tasks"]) == ["ls", "tasks"]
    assert app.complete_arguments(["--help"]) == ["--help"]
    assert app.complete_arguments([]) == []


def test_a_missing_harness_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: None)
    assert app.main(["--tasks", "x"]) == 2
    assert capsys.readouterr().err == (
        "lm_eval: the package lm_eval is missing; pip install 'rlhf_jax[lm_eval]'\n"
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model with random parameters that knows the words of the questions, context 256."""
    everything = " ".join([WORDS, truthfulqa.PRIMER, "Q: Question\nA:", QUESTIONS])
    tokenizer = train_words([everything, " " + everything])
    folder = tmp_path_factory.mktemp("runs") / "sft"
    shape = config(tokenizer.vocab_size, context_length=256)
    meta = Meta(
        stage="sft",
        kind="language_model",
        num_steps=3,
        model=to_dict(shape),
        tokenizer=tokenizer.fingerprint(),
        lineage={},
    )
    save(folder, 3, drawn_params(LanguageModel(shape), 1), {"step": 3}, meta, keep=1)
    tokenizer.save(folder / "tokenizer")
    return folder


def request(*arguments):
    from lm_eval.api.instance import Instance

    return Instance(request_type="loglikelihood", doc={}, arguments=arguments, idx=0)


@pytest.fixture(scope="module")
def harness_model(checkpoint):
    from rlhf_jax.apps.harness_model import HarnessModel

    return HarnessModel(str(checkpoint), batch_size=4)


def our_logp(checkpoint, context, ids):
    ref = find_checkpoint(checkpoint.parent, str(checkpoint))
    model = load_language_model(ref)
    return continuation_logps(*model, [Continuation(context, ids)], batch_size=1)[0]


@needs_harness
def test_requests_are_answered_with_our_own_numbers(checkpoint, harness_model):
    tokenizer = load_tokenizer_of(find_checkpoint(checkpoint.parent, str(checkpoint)))
    asked = [("the fox is", " red ."), ("the fox is ", "blue"), ("", "the owl")]
    answers = harness_model.loglikelihood([request(*texts) for texts in asked], disable_tqdm=True)
    ids = [tokenizer.encode(text, special=True) for text in ("the fox is", " red .", " blue")]
    expected = [
        our_logp(checkpoint, ids[0], ids[1]),
        our_logp(checkpoint, ids[0], ids[2]),  # the space belongs to the continuation
        our_logp(checkpoint, [tokenizer.eos_id], tokenizer.encode("the owl", special=True)),
    ]
    np.testing.assert_allclose([logp for logp, _ in answers], expected, atol=1e-4)


@needs_harness
def test_rolling_predicts_every_token_once(checkpoint, harness_model):
    from rlhf_jax.apps.harness_model import HarnessModel

    text = "the fox is red . " * 9
    ids = harness_model.tok_encode(text)
    (whole,) = harness_model.loglikelihood_rolling([request(text)])
    assert whole == pytest.approx(our_logp(checkpoint, [1], ids), abs=1e-3)
    short = HarnessModel(str(checkpoint), batch_size=2, max_length=16)
    (parts,) = short.loglikelihood_rolling([request(text)])
    first = our_logp(checkpoint, [1], ids[:16])
    second = our_logp(checkpoint, ids[15:16], ids[16:32])
    rest = our_logp(checkpoint, ids[len(ids) - 17 : 32], ids[32:])
    assert 32 < len(ids) <= 48
    assert parts == pytest.approx(first + second + rest, abs=1e-3)


@needs_harness
def test_a_chat_is_rendered_as_in_training(harness_model):
    chat = [
        {"role": "user", "content": "what is red ?"},
        {"role": "assistant", "content": "the fox"},
        {"role": "user", "content": "what is blue ?"},
    ]
    text = harness_model.apply_chat_template(chat)
    messages = [Message(turn["role"], turn["content"]) for turn in chat]
    rendered = render(harness_model.ours, messages, generation_prompt=True)
    assert harness_model.tok_encode(text) == rendered.ids
    open_text = harness_model.apply_chat_template(chat[:2], add_generation_prompt=False)
    assert open_text.endswith("<|assistant|>the fox")
    with pytest.raises(ValueError, match="a system message, but the markers"):
        harness_model.apply_chat_template([{"role": "system", "content": "x"}])


@needs_harness
def test_arguments_that_cannot_be_followed(checkpoint):
    from rlhf_jax.apps.harness_model import AUTO_BATCH, HarnessModel

    assert HarnessModel(str(checkpoint), batch_size="auto").batch_size == AUTO_BATCH
    assert HarnessModel(str(checkpoint), batch_size="auto:4", max_batch_size=8).batch_size == 8
    with pytest.raises(ValueError, match="batch_size=0: expected"):
        HarnessModel(str(checkpoint), batch_size="0")
    with pytest.raises(ValueError, match="max_length=300: the model's context is 256"):
        HarnessModel(str(checkpoint), max_length=300)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        HarnessModel("nowhere")


TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
"""


@needs_harness
@pytest.mark.filterwarnings("ignore")
def test_the_harness_and_our_truthfulqa_have_the_same_numbers(
    checkpoint, tmp_path, monkeypatch, capsys
):
    """Its command line on a local task; questions formatted alike, behind the same start token."""
    (tmp_path / "questions.csv").write_text(QUESTIONS)
    questions = truthfulqa.read(str(tmp_path / "questions.csv"), close=False)
    ref = find_checkpoint(checkpoint.parent, str(checkpoint))
    benchmark = truthfulqa.TruthfulQA(questions)
    data = benchmark.measure(load_language_model(ref), load_tokenizer_of(ref), batch_size=4)
    scores = benchmark._scores({**data, "logps": [list(row) for row in data["logps"]]})
    rows = [
        {"context": q.context, "choices": [q.best, *q.false], "all": [*q.true, *q.false]}
        for q in questions
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = "output_type: multiple_choice\ndoc_to_text: '{{context}}'\ndoc_to_target: 0\n"
    for name, column in (("mc1", "choices"), ("all", "all")):
        task = TASK.format(name=f"local_{name}", path=tmp_path / "rows.jsonl")
        task += f"{common}doc_to_choice: '{{{{{column}}}}}'\nmetric_list:\n  - metric: acc\n"
        (tmp_path / f"{name}.yaml").write_text(task)
    task = TASK.format(name="local_write", path=tmp_path / "rows.jsonl")
    task += (
        "output_type: generate_until\ndoc_to_text: '{{context}}'\ndoc_to_target: '{{choices[0]}}'\n"
        "generation_kwargs:\n  until: ['Q:']\n  max_gen_toks: 8\n"
        "metric_list:\n  - metric: exact_match\n"
    )
    (tmp_path / "write.yaml").write_text(task)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["lm_eval"])
    out = tmp_path / "out"
    command = f"--model_args checkpoint={checkpoint},add_bos_token=True --batch_size 4"
    command += f" --tasks local_mc1,local_all,local_write --include_path {tmp_path}"
    command += f" --log_samples --output_path {out}"
    assert app.main(command.split()) == 0
    assert "rlhf_jax ({'checkpoint'" in capsys.readouterr().out
    (results,) = out.rglob("results_*.json")
    results = json.loads(results.read_text())
    assert results["results"]["local_mc1"]["acc,none"] == np.mean(scores["MC1"])
    (log,) = out.rglob("samples_local_all_*.jsonl")
    samples = [json.loads(line) for line in log.read_text().splitlines()]
    for sample, logps in zip(samples, data["logps"], strict=True):
        theirs = [float(answer[0][0]) for answer in sample["resps"]]
        np.testing.assert_allclose(theirs, logps, atol=1e-4)
    assert results["config"]["model_sha"] == ref.meta.fingerprint
