"""Reading the original files of the public benchmarks, and naming the place of what is wrong."""

import json

import numpy as np
import pytest

from rlhf_jax.evaluation.benchmarks import (
    crows_pairs,
    files,
    multiple_choice,
    plain_text,
    real_toxicity_prompts,
    truthfulqa,
)
from rlhf_jax.evaluation.benchmarks import toxicity_classifier as classifiers
from rlhf_jax.evaluation.benchmarks.questions import ResponseSettings
from rlhf_jax.inference.decoding import PLAIN

TRUTHFUL = """Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source
Adversarial,Animals,Is the fox red?,"Yes, red","Yes, red; It is red.; ",It is blue; It is green,http://a
Non-Adversarial,Plants,"What is
moss?",A plant,A plant,A fox;;A bear,http://b
"""
CROWS = """,sent_more,sent_less,stereo_antistereo,bias_type,annotations
0,"The owl, as ever, is sly.",The fox is sly.,stereo,animals,[]
1,The bear is kind.,The owl is kind.,antistereo,birds,[]
"""


def write(tmp_path, text, name="file"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_truthfulqa_reads_both_editions(tmp_path):
    first, second = truthfulqa.read(write(tmp_path, TRUTHFUL), close=True)
    assert (first.best, first.true) == ("Yes, red.", ("Yes, red.", "It is red."))
    assert first.false == ("It is blue.", "It is green.")
    assert (second.text, second.false, second.best_false) == (
        "What is\nmoss?",
        ("A fox.", "A bear."),
        None,
    )
    assert truthfulqa.read(write(tmp_path, TRUTHFUL), close=False)[0].false == (
        "It is blue",
        "It is green",
    )
    later = TRUTHFUL.replace("Best Answer,", "Best Answer,Best Incorrect Answer,").replace(
        '"Yes, red","', '"Yes, red",Blue,"'
    )
    later = later.replace(",A plant,A plant", ",A plant,A fox,A plant")
    assert [
        question.best_false for question in truthfulqa.read(write(tmp_path, later), close=True)
    ] == ["Blue.", "A fox."]
    assert first.answers == ("Yes, red.", "It is red.", "It is blue.", "It is green.")


def test_the_primer_ends_where_the_answer_starts():
    text = truthfulqa.Question("Is the fox red?", "c", "t", ("t",), ("f",), None).context
    assert text.startswith("Q: What is human life expectancy in the United States?\nA: Human")
    assert text.endswith("in Barcelona, Spain.\n\nQ: Is the fox red?\nA:")
    assert text.count("Q: ") == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("Incorrect Answers", "Wrong Answers"),
            r":1: no column 'Incorrect Answers', found 'Type'",
        ),
        (("It is blue; It is green", " ; "), r":2: Incorrect Answers: .*separated by semicolons"),
        (
            ("It is blue; It is green", " "),
            r":2: Incorrect Answers: ' ', expected text that is not empty",
        ),
        (("A plant,A plant", "A plant,A tree"), r":3: Best Answer: 'A plant.' is not among"),
        ((",http://a", ""), r":2: 6 fields, expected 7"),
        (("http://b", "http://b,more"), r":3: 8 fields, expected 7"),
    ],
)
def test_what_is_wrong_with_truthfulqa_is_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        truthfulqa.read(write(tmp_path, TRUTHFUL.replace(*change)), close=True)


def test_crows_pairs(tmp_path):
    first, second = crows_pairs.read(write(tmp_path, CROWS))
    assert first == ("The owl, as ever, is sly.", "The fox is sly.", "stereo", "animals")
    assert (second.direction, second.bias_type) == ("antistereo", "birds")
    with pytest.raises(
        ValueError, match=r":3: stereo_antistereo: 'anti', expected one of 'stereo', 'antistereo'"
    ):
        crows_pairs.read(write(tmp_path, CROWS.replace("antistereo,birds", "anti,birds")))
    with pytest.raises(ValueError, match=r":2: sent_less: '', expected text"):
        crows_pairs.read(write(tmp_path, CROWS.replace("The fox is sly.", "")))
    with pytest.raises(ValueError, match="expected a CSV file in UTF-8"):
        crows_pairs.read(write(tmp_path, CROWS.encode().replace(b"sly", b"\xff")))
    with pytest.raises(ValueError, match="no rows"):
        crows_pairs.read(write(tmp_path, CROWS.split("\n")[0]))
    with pytest.raises(FileNotFoundError, match="nowhere: no such file"):
        crows_pairs.read(str(tmp_path / "nowhere"))


def toxic(text, toxicity, challenging=False):
    return {
        "filename": "x",
        "challenging": challenging,
        "prompt": {"text": text, "toxicity": toxicity},
        "continuation": {"text": " b", "toxicity": None},
    }


def test_real_toxicity_prompts(tmp_path):
    rows = lines(toxic("a ", 0.5), toxic("b", 0.51, True), toxic("c", None))
    prompts, unscored = real_toxicity_prompts.read(write(tmp_path, rows))
    assert (prompts[0].text, unscored) == ("a ", 1)
    splits = [
        [split for split in real_toxicity_prompts.SPLITS if prompt.in_split(split)]
        for prompt in prompts
    ]
    assert splits == [["non-toxic"], ["toxic", "challenging"]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (toxic("a", float("nan")), r":1: prompt.toxicity: nan, expected a number from 0 to 1"),
        (toxic("a", 1.5), r":1: prompt.toxicity: 1.5, expected"),
        (toxic("  ", 0.5), r":1: prompt.text: '  ', expected text"),
        (toxic("a", 0.5, "yes"), r":1: challenging: 'yes', expected true or false"),
        (
            {"challenging": True},
            r":1: prompt.toxicity: missing field, expected 'prompt' .* found challenging",
        ),
        ([1], r":1: list, expected a JSON object"),
    ],
)
def test_what_is_wrong_with_a_record_is_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        real_toxicity_prompts.read(write(tmp_path, lines(row)))


def scored(prompt, *generations):
    return {
        "prompt": {"text": prompt},
        "generations": [{"text": text, "toxicity": value} for text, value in generations],
    }


def test_scores_from_a_file(tmp_path):
    path = write(tmp_path, lines(scored("p", ("x", 0.25), ("y", None)), scored("q", ("x", 0.75))))
    judge = real_toxicity_prompts.FileJudge.read(path)
    np.testing.assert_array_equal(
        judge.judge(["p", "q"], [["x", "y"], ["x", "x"]]), [[0.25, np.nan], [0.75, 0.75]]
    )
    with pytest.raises(
        ValueError, match=r"1 of 2 continuations have no score, the first is 'y' after 'q'"
    ):
        judge.judge(["q"], [["x", "y"]])
    with pytest.raises(
        ValueError, match=r":2: generations\[0\].toxicity: 0.5, but 0.25 for the same text before"
    ):
        real_toxicity_prompts.FileJudge.read(
            write(tmp_path, lines(scored("p", ("x", 0.25)), scored("p", ("x", 0.5))))
        )
    with pytest.raises(ValueError, match=r"generations\[0\].toxicity: nan"):
        real_toxicity_prompts.FileJudge.read(
            write(tmp_path, lines(scored("p", ("x", float("nan")))))
        )


def test_what_is_written_for_a_judge_is_what_is_read_back(tmp_path):
    prompts = [
        real_toxicity_prompts.ToxicityPrompt(text, 0.1, False) for text in ("left out", "p\nq")
    ]
    settings = ResponseSettings(PLAIN, response_length=1, samples_per_prompt=2, seed=0)
    benchmark = real_toxicity_prompts.RealToxicityPrompts(prompts, "basic", settings, None)
    data = {"kept": [1], "texts": [["é", " "]]}
    benchmark.export({"sft": data}, tmp_path / "out")
    path = tmp_path / "out" / "continuations" / "sft-basic.jsonl"
    row = json.loads(path.read_text(encoding="utf-8"))
    for generation in row["generations"]:
        generation["toxicity"] = 0.5
    judge = real_toxicity_prompts.FileJudge.read(write(tmp_path, lines(row)))
    np.testing.assert_array_equal(benchmark.toxicities(data, judge), [[0.5, 0.0]])


def test_multiple_choice(tmp_path):
    row = {"question": "what?", "choices": ["a", "b "], "answer": 1}
    assert (
        multiple_choice.read(write(tmp_path, lines(row, {**row, "answer": "b"})))
        == [("what?", ("a", "b"), 1)] * 2
    )
    for change, message in (
        ({"answer": 2}, r":1: answer: 2, expected a place from 0 to 1 or a choice"),
        ({"answer": "c"}, r"answer: 'c'"),
        ({"answer": True}, r"answer: True"),
        ({"choices": ["a", " a"]}, r"choices: .*all different"),
        ({"choices": ["a"]}, r"at least two"),
        ({"choices": ["a", ""]}, r"not empty"),
        ({"question": ""}, r"question: ''"),
    ):
        with pytest.raises(ValueError, match=message):
            multiple_choice.read(write(tmp_path, lines({**row, **change})))
    with pytest.raises(ValueError, match=r":2: .*expected a JSON object"):
        multiple_choice.read(write(tmp_path, lines(row) + "\n\n"))


def test_a_text_file_keeps_its_bytes(tmp_path):
    (document,) = plain_text.read(write(tmp_path, "a\r\nb\n"))
    assert document.text == "a\r\nb\n"
    for content in (b"", b"\xff"):
        with pytest.raises(ValueError, match="expected"):
            plain_text.read(write(tmp_path, content))


def test_a_share_is_a_number():
    for value in (True, "0.5", float("inf"), -0.1):
        with pytest.raises(ValueError, match=r"x: .*expected a number from 0 to 1"):
            files.share({"x": value}, "x")


# --- similarity -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    # As sacrebleu 2.6 says with corpus_bleu([answer], [[reference]], smooth_method="exp",
    # tokenize="intl").
    [
        ("The fox is red.", "The fox is red.", 100.0),
        ("The fox, today, is red.", "The fox is red.", 25.848657697858535),
        ("A fox is red today.", "The fox is red.", 32.46679154750991),
        ("It costs $5.50!", "It costs $5 or more!", 28.087083270446133),
        ("red", "The fox is red.", 0.0),
        ("", "The fox is red.", 0.0),
    ],
)
def test_bleu(answer, reference, expected):
    assert truthfulqa.bleu(answer, reference) == pytest.approx(expected, rel=1e-9)


def test_rouge():
    answer, reference = "The FOX is the red fox.", "the fox was red"
    assert truthfulqa.rouge_n(answer, reference, 1) == pytest.approx(
        200 * 3 / 10
    )  # the, fox, red: each as often as in both
    assert truthfulqa.rouge_n(answer, reference, 2) == pytest.approx(200 * 1 / 8)
    assert truthfulqa.rouge_l(answer, reference) == pytest.approx(200 * 3 / 10)
    assert truthfulqa.rouge_l("red fox the", reference) == pytest.approx(200 * 1 / 7)
    assert truthfulqa.rouge_n("", reference, 1) == 0.0


# --- toxicity classifier --------------------------------------------------------------------------


def folder_of(tmp_path, **changes):
    rng = np.random.default_rng(0)
    sizes = {"V": 4, "E": 3, "G": 8, "H": 2, "D": 4, "F": 3, "K": 2}
    weights = {
        name: rng.normal(size=[sizes[axis] for axis in axes]).astype(np.float32)
        for name, axes in classifiers.SHAPES.items()
    }
    np.savez(tmp_path / "weights.npz", **{**weights, **changes})
    (tmp_path / "vocab.json").write_text(json.dumps([None, "don't", "fox", "owl"]))
    return weights, str(tmp_path)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(weights, ids):
    """The classifier of one text, token by token."""
    sides = []
    for name, order in (("forward_lstm", ids), ("backward_lstm", ids[::-1])):
        h, s, states = np.zeros(2), np.zeros(2), []
        for word in order:
            x = weights["embedding__embeddings"][word]
            z = (
                x @ weights[f"{name}__kernel"]
                + h @ weights[f"{name}__recurrent_kernel"]
                + weights[f"{name}__bias"]
            )
            i, f, c, o = z.reshape(4, 2)
            s = sigmoid(f) * s + sigmoid(i) * np.tanh(c)
            h = sigmoid(o) * np.tanh(s)
            states.append(h)
        sides.append(np.max(states, axis=0))
    hidden = np.maximum(
        np.concatenate(sides) @ weights["dense__kernel"] + weights["dense__bias"], 0
    )
    return sigmoid(hidden @ weights["dense_1__kernel"] + weights["dense_1__bias"])[0]


def test_the_classifier_is_what_its_docstring_says(tmp_path):
    weights, folder = folder_of(tmp_path)
    classifier = classifiers.load_word_classifier(folder)
    texts = ["Fox... OWL", "nobody knows", "Don't,fox\towl\n" + "owl " * 200]
    ids = [[0] * 98 + [2, 3], [0] * 100, [3] * 100]
    assert [classifier.word_ids(text) for text in texts] == ids
    np.testing.assert_allclose(classifier(texts), [by_hand(weights, row) for row in ids], rtol=1e-5)
    assert classifier([]).shape == (0,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dense__bias": np.zeros(4, np.float32)}, r"dense__bias: shape \(4,\) does not fit F"),
        ({"more": np.zeros(1, np.float32)}, r"more: missing or unknown"),
        (
            {"dense__bias": np.full(3, np.nan, np.float32)},
            r"dense__bias: float32, expected finite float32",
        ),
        ({"dense__bias": np.zeros(3)}, r"dense__bias: float64, expected finite float32"),
        ({"dense__bias": np.array([None], object)}, r"allow_pickle=False"),
    ],
)
def test_a_damaged_classifier_is_refused(tmp_path, changes, message):
    _, folder = folder_of(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        classifiers.load_word_classifier(folder)


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path):
    _, folder = folder_of(tmp_path)
    (tmp_path / "vocab.json").write_text('["fox", "owl", "bear", "mole"]')
    with pytest.raises(ValueError, match="list of 4 words, the first of them null"):
        classifiers.load_word_classifier(folder)
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"vocab\.json"):
        classifiers.load_word_classifier(folder)
