"""A published classifier judges as transformers alone has it judge; what is none is refused."""

import numpy as np
import pytest
import transformers

from rlhf_jax.data.tokenizers import train_words
from rlhf_jax.evaluation.benchmarks.toxicity_classifier import load_transformers_classifier

TEXTS = [
    "the fox is red",
    "the owl",
    "the fox is the owl and the owl is red",
    "red",
] * 9  # more than one batch
LABELS = {0: "fine", 1: "toxic", 2: "obscene"}


def test_without_pytorch_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ValueError, match=r"PyTorch.* not installed: pip install rlhf_jax\[torch\]"):
        load_transformers_classifier(f"hf:{tmp_path}", "toxic")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Random BERTs: choosing one label, seeing several, with a single label; and a trunk."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifiers")
    tokenizer = train_words([" ".join(TEXTS)])
    kinds = {
        "one": ("single_label_classification", 3),
        "several": ("multi_label_classification", 3),
        "alone": (None, 1),
    }
    for name, (problem, count) in kinds.items():
        config = transformers.BertConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=8,
            problem_type=problem,
            initializer_range=1.0,
            label2id={},
            id2label={k: LABELS[k] if count > 1 else "toxic" for k in range(count)},
        )
        model = transformers.BertForSequenceClassification(config).eval()
        model.save_pretrained(folder / name)
        tokenizer.save(folder / name)
    model.bert.save_pretrained(folder / "trunk")
    tokenizer.save(folder / "trunk")
    return folder


def by_hand(folder, text):
    """Logits of one text without padding, cut at the model's eight places."""
    import torch

    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return (
            model(**tokenizer(text, truncation=True, max_length=8, return_tensors="pt"))
            .logits[0]
            .double()
            .numpy()
        )


@pytest.mark.parametrize("name", ["one", "several", "alone"])
def test_the_score_is_the_chance_of_the_label(folders, name):
    scores = load_transformers_classifier(f"hf:{folders / name}", "toxic")(TEXTS)
    for score, text in zip(scores[:4], TEXTS, strict=False):
        logits = by_hand(folders / name, text)
        chance = (
            np.exp(logits) / np.exp(logits).sum() if name == "one" else 1 / (1 + np.exp(-logits))
        )
        assert score == pytest.approx(chance[1 if len(chance) > 1 else 0], abs=1e-6)
    np.testing.assert_allclose(scores, np.tile(scores[:4], 9), atol=1e-6)
    assert np.ptp(scores) > 0.01
    assert load_transformers_classifier(f"hf:{folders / name}", "toxic")([]).shape == (0,)


def test_roberta_s_first_places_are_not_for_tokens(tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    tokenizer = train_words([" ".join(TEXTS)])  # which knows no model_max_length
    config = transformers.RobertaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
        pad_token_id=1,
        initializer_range=1.0,
        id2label=LABELS,
        label2id={},
    )
    model = transformers.RobertaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    long, cut = (
        " the owl the fox red red red red",
        " the owl the fox red red",
    )  # the places 2 ... 7 hold six tokens
    assert len(tokenizer.encode(cut, special=False)) == 6
    scorer = load_transformers_classifier(f"hf:{tmp_path}", "toxic")
    np.testing.assert_array_equal(scorer([long]), scorer([cut]))


def test_what_is_no_trained_classifier_or_has_no_such_label_is_refused(folders, tmp_path):
    with pytest.raises(ValueError, match=r"label 'rude', expected one of fine, toxic, obscene"):
        load_transformers_classifier(f"hf:{folders / 'one'}", "rude")
    with pytest.raises(
        ValueError,
        match=r"no weights for classifier.bias, classifier.weight: it is no trained classifier",
    ):
        load_transformers_classifier(f"hf:{folders / 'trunk'}", "LABEL_0")
    with pytest.raises(ValueError, match="expected a sequence classifier in safetensors"):
        load_transformers_classifier(f"hf:{tmp_path}", "toxic")
