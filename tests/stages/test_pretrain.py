"""Pretraining refuses what its data cannot give, before the corpus is tokenised."""

import pytest
from tests_support import load_experiment

from rlhf_jax import main


def test_more_validation_batches_than_there_are_are_refused(tmp_path):
    config = load_experiment("experiments/menagerie/pretrain.py", "tiny")
    config.data.data_dir = str(tmp_path / "data")
    config.mesh.data = 1
    config.pretrain.eval_batches = 500
    message = (
        r"pretrain\.eval_batches=500: the validation split has 22 blocks, which are 2 batches of "
        r"pretrain\.batch_size=8; set pretrain\.eval_batches=2 or less"
    )
    with pytest.raises(ValueError, match=message):
        main.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run/corpus/train").exists()
