"""A mistake on the command line or in a config file is one line that says what and where."""

import pytest
from absl import flags
from ml_collections import config_flags

from rlhf_jax.options import describe_flag_error

PPO = "experiments/menagerie/ppo.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"--config={PPO}:huge"], "size 'huge' is not one of tiny, default, medium, large"),
        (
            ["--config=experiments/yours/pipeline.py:modle=x"],
            "config: 'modle=x' behind the path, expected some of model=... demonstrations=... "
            "comparisons=... prompts=... prompt_length=... response_length=...",
        ),
        (["--config=nowhere.py"], "config: [Errno 2] No such file or directory: 'nowhere.py'"),
        (
            [f"--config={PPO}", "--config.ppo.kl_cof=1"],
            'config: no such field: \'kl_cof\'; Did you mean "kl_coef" instead of "kl_cof"?',
        ),
        (
            [f"--config={PPO}", "--config.pppo.kl_coef=1"],
            'config: no such field: \'pppo\'; Did you mean "ppo" instead of "pppo"?',
        ),
        (
            [f"--config={PPO}", "--config.ppo.kl_coef=a"],
            "flag --config.ppo.kl_coef=a: could not convert string to float: 'a'",
        ),
        (
            [f"--config={PPO}", "--confg=x"],
            "Unknown command line flag 'confg'. Did you mean: config ?",
        ),
        (["--config=BROKEN"], "config: ZeroDivisionError: division by zero"),
    ],
)
def test_is_one_line(arguments, message, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config():\n    return 1 / 0\n")
    argv = ["main", *(text.replace("BROKEN", str(broken)) for text in arguments)]
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file(
        "config", lock_config=True, flag_values=values, sys_argv=argv
    )

    def read():
        values(argv)
        return config.value.get("stage")

    with pytest.raises(Exception) as caught:  # whatever the libraries raise
        read()
    assert describe_flag_error(caught.value) == message
