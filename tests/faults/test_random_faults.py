"""A fixed part of the faults that `python tests/faults/random_faults.py` tries at random."""

import random_faults


def test_a_fixed_set_of_random_faults_is_survived(tmp_path):
    counts, broken = random_faults.run_all(range(8), tmp_path)
    assert broken == []
    assert counts["same bits"] + counts["refused"] == 8
