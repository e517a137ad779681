"""A classifier's probability is a score, whoever trained it; what cannot be read is refused."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers

from rlhf_jax import main
from rlhf_jax.data.records import Message, Prompt
from rlhf_jax.data.tokenizers import train_words
from rlhf_jax.evaluation.benchmarks.toxicity_classifier import SHAPES, load_transformers_classifier
from rlhf_jax.evaluation.generate import Generation
from rlhf_jax.inference.scoring import classify_texts
from rlhf_jax.models.config import from_dict
from rlhf_jax.models.heads import Classifier
from rlhf_jax.training.pretrained import load_model, read_tokenizer

QUESTION = Prompt((Message("user", "What does the cow eat?"),))


def score(judge, texts, workdir=Path()):
    samples = [[Generation(text, (), finished=True) for text in texts]]
    return main.make_judge(f"classifier:{judge}", workdir).scores([QUESTION], samples)[0]


def test_the_classify_stages_checkpoint(tour):
    params, meta = load_model(tour.workdir / "classify")
    labels, tokenizer = meta.extra["labels"], read_tokenizer(tour.workdir / "classify")
    texts = ["the cow eats grass", "go away", "so " * 300]
    (ids,) = tokenizer.encode_batch(texts[:1], special=False)
    row = np.array([[*tokenizer.prepend_begin_of_text(ids), tokenizer.eos_id]], np.int32)
    model = Classifier(from_dict(meta.model), len(labels))
    classes = jax.jit(classify_texts, static_argnums=0)(model, params, row, np.ones_like(row))
    expected = jax.nn.softmax(classes.logits_BC[0])
    for number, label in enumerate(labels):
        found = score(f"../classify?label={label}", texts, tour.workdir / "label")
        np.testing.assert_allclose(found[0], expected[number], rtol=1e-4)
        assert found.shape == (3,)
        minus = score(f"../classify?label={label}&sign=-", texts, tour.workdir / "label")
        np.testing.assert_array_equal(minus, -found)
    with pytest.raises(ValueError, match=rf"no label, expected \?label= with one of {labels[0]}"):
        main.make_judge("classifier:../classify", tour.workdir / "label")
    with pytest.raises(ValueError, match=r"the checkpoint is a language_model \(stage sft\)"):
        main.make_judge("classifier:../sft?label=x", tour.workdir / "label")


def test_a_classifier_of_words(tmp_path):
    rng = np.random.default_rng(0)
    sizes = {"E": 2, "H": 3, "G": 12, "D": 6, "F": 4, "K": 1, "V": 3}
    weights = {
        name: rng.normal(size=[sizes[axis] for axis in axes]).astype(np.float32)
        for name, axes in SHAPES.items()
    }
    np.savez(tmp_path / "weights.npz", **weights)
    (tmp_path / "vocab.json").write_text(json.dumps([None, "good", "bad"]))
    good, bad = score(str(tmp_path), ["good", "bad"])
    assert 0 < good < 1
    assert good != bad
    assert score(f"{tmp_path}?sign=-", ["good"]).tolist() == [-good]
    with pytest.raises(ValueError, match="label=x, but a classifier of words has no labels"):
        main.make_judge(f"classifier:{tmp_path}?label=x", tmp_path)


def test_a_classifier_of_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    tokenizer = train_words(["the fox is red"])
    config = transformers.BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
        initializer_range=1.0,
        label2id={},
        id2label={0: "neg", 1: "pos"},
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    texts = ["the fox", "is red", "the fox is red " * 8]
    expected = load_transformers_classifier(f"hf:{tmp_path}", "pos")(texts)
    np.testing.assert_array_equal(score(f"{tmp_path}?label=pos", texts), expected)
    np.testing.assert_array_equal(score(f"{tmp_path}?label=pos&sign=-", texts), -expected)
    np.testing.assert_allclose(score(f"{tmp_path}?label=neg", texts), 1 - expected, atol=1e-6)


def test_what_is_no_classifier(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"architectures": ["BertModel"]}))
    with pytest.raises(ValueError, match=r"has BertModel; expected a \.\.\.ForSequenceClassif"):
        main.make_judge(f"classifier:{tmp_path}?label=x", tmp_path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="has no architecture; expected"):
        main.make_judge(f"classifier:{tmp_path}?label=x", tmp_path)
    names = {"0": "neg", "1": "pos"}
    content = {"architectures": ["BertForSequenceClassification"], "id2label": names}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"label 'x', expected .* one of neg, pos"):
        main.make_judge(f"classifier:{tmp_path}?label=x", tmp_path)
    for option, message in (
        ("sign=*", "sign=*, expected + or -"),
        ("labl=pos", "unknown option labl"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            main.make_judge(f"classifier:{tmp_path}?{option}", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent"):
        main.make_judge("classifier:../absent?label=x", tmp_path)
