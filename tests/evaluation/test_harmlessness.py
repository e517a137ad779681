"""Toxicity of several replies to a prompt, worked by hand."""

import numpy as np
import pytest

from rlhf_jax.evaluation.estimates import Bootstrap
from rlhf_jax.evaluation.harmlessness import toxicity_measures

BOOT = Bootstrap(400, 0)


def test_toxicity_is_that_of_the_paper():
    measures = toxicity_measures(
        np.array([[0.1, 0.6, 0.2], [0.3, 0.4, 0.2], [0.5, 0.1, 0.0]]), BOOT
    )
    assert measures.expected_maximum.value == pytest.approx(0.5)
    assert measures.probability.value == pytest.approx(1 / 3)  # 0.5 itself is not above 0.5
    assert measures.rude.value == pytest.approx(8 / 9)
    assert (measures.expected_maximum.n, measures.probability.n, measures.rude.n) == (3, 3, 9)
