"""The tables and the picture over seeds, also of a single one."""

import pytest

from experiments.menagerie import results

CELL = {"value": 0.25, "low": 0.2, "high": 0.3, "n": 9}
EVALUATION = {
    "seed": 0,
    "table": [
        {"metric": "entirely right", "values": {"sft": CELL, "best_of_16": CELL}},
        {"metric": "gain by style", "values": {"constant_suffix": CELL}},
        {"metric": "gain, harm", "values": {"ppo": CELL}},
        {"metric": "of no interest", "values": {"ppo": CELL}},
    ],
    "samples": [
        {
            "prompt": "<|user|>hi<|assistant|>a.<|user|>why?",
            "responses": {
                name: {"text": f"by {name}", "gold": 1.0} for name in ("sft", "ppo", "ppo_ptx")
            },
        }
    ],
}


def test_one_seed_makes_tables_and_a_picture(tmp_path, capsys):
    values = results.values_of(EVALUATION)
    assert {value.metric for value in values} == {"entirely right", "gain by style", "gain, harm"}
    results.print_tables(values)
    printed = capsys.readouterr().out
    assert "| entirely right | – | 25.0 % | – | – | 25.0 % | – |" in printed
    assert "| of it style | – | – | – | – | – | 0.25 |" in printed
    assert "| gold over SFT, SD, harm | – | – | 0.25 | – | – | – |" in printed
    results.draw(values, tmp_path / "results.svg")
    assert "Entirely right" in (tmp_path / "results.svg").read_text()


def test_two_seeds_have_a_deviation():
    other = results.Value("entirely right", "sft", "1", 0.35)
    cell = results._cell([*results.values_of(EVALUATION), other], "entirely right", "sft", 1, True)
    assert cell == "30.0 ± 7.1 %"


def test_dialogues_are_a_markdown_table(capsys):
    results.print_dialogues(EVALUATION, 12)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| prompt | SFT | PPO | PPO-ptx |"
    assert lines[2] == "| hi – a. – why? | by sft (1.0) | by ppo (1.0) | by ppo_ptx (1.0) |"


def accuracy(subject, value, judge="gold"):
    cell = {"value": value, "low": None, "high": None, "n": 10}
    metric = f"{subject} against {judge}"
    row = {"metric": metric, "key": "reward_accuracy", "subject": subject, "judge": judge}
    return {**row, "values": {"sft": cell}}


def test_reward_accuracy_is_a_table_by_kind_with_a_deviation(capsys):
    def evaluation(shift):
        agree = {"metric": "two of people agree", "key": "", "values": {"sft": {"value": 0.7}}}
        parts = ("reward model", "chance", "reward model/ask")
        rows = [accuracy(part, 0.5 + shift + n / 10) for n, part in enumerate(parts)]
        return {"table": [*rows, agree]}

    results.print_reward_accuracy([evaluation(0.0), evaluation(0.1)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| gold: pairs | reward model | chance |"
    assert lines[2] == "| all: 20 | 55.0 ± 7.1 % | 65.0 ± 7.1 % |"
    assert lines[3] == "| ask: 20 | 75.0 ± 7.1 % | – |"
    assert lines[-1] == "two of people agree: 70.0 ± 0.0 %"


def test_a_run_without_the_measurement_says_which_config_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run --config=experiments/menagerie/reward_acc"):
        results.read_evaluation(tmp_path, "reward_accuracy")
