"""`--dry_run` checks a run, says how large it is, and leaves no trace."""

import pytest
from tests_support import load_experiment

from rlhf_jax import main
from rlhf_jax.models.config import num_params

PIPELINE = "experiments/menagerie/pipeline.py"


def test_a_pipeline_is_checked_and_reckoned_and_nothing_is_written(tmp_path, capsys):
    config = load_experiment(PIPELINE, "tiny")
    main.dry_run(config, str(tmp_path / "run"))
    text = capsys.readouterr().out
    stages = [line.split()[-1] for line in text.splitlines() if line.startswith("== ")]
    assert stages == [str(tmp_path / "run" / name) for name in config.order]
    count = num_params(main.build_settings(main.plan_pipeline(config)["pretrain"]).model)
    assert f"policy    <- scratch, {count:,} parameters" in text
    assert f"policy    <- ../sft, {count:,} parameters" in text
    # Policy and value network with gradients and two moments each, and the reference.
    assert f"memory    {4 * count * 9 / 1e9:.3g} GB for 3 networks like the policy" in text
    assert f"memory    {4 * count * 4 / 1e9:.3g} GB for one network" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stage", "field", "value", "message"),
    [
        ("sft", "num_micro_batches", 3, r"sft\.batch_size by sft\.num_micro_batches: 16 is not"),
        ("ppo", "num_mini_batches", 7, r"ppo"),
        ("reward", "num_micro_batches", 5, r"reward\.batch_size by reward\.num_micro_batches"),
        (
            "reward",
            "batch_size",
            0,
            r"config\.stages\.reward\.reward\.batch_size=0: must be positive",
        ),
    ],
)
def test_arithmetic_that_does_not_come_out_is_refused(stage, field, value, message, tmp_path):
    config = load_experiment(PIPELINE, "tiny")
    config.stages[stage][stage][field] = value
    with pytest.raises(ValueError, match=message):
        main.dry_run(config, str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_nobody_makes_is_named(tmp_path):
    config = load_experiment("experiments/menagerie/ppo.py", "tiny")
    with pytest.raises(ValueError, match=r"\.\./sft: there is no .*/sft, and no stage before this"):
        main.dry_run(config, str(tmp_path / "ppo"))
