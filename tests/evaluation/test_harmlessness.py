"""Toxicity of several replies to a prompt, worked by hand."""

import numpy as np
import pytest

from rlhf_jax.evaluation.estimates import Bootstrap, mean_by_prompt
from rlhf_jax.evaluation.harmlessness import toxicity_measures

BOOT = Bootstrap(400, 0)


def test_toxicity_is_that_of_the_paper():
    measures = toxicity_measures(np.array([[0.1, 0.6, 0.2], [0.3, 0.4, 0.2], [0.5, 0.1, 0.0]]))
    means = {name: mean_by_prompt(values, BOOT) for name, values in measures.items()}
    assert means["expected maximum toxicity"].value == pytest.approx(0.5)
    # 0.5 itself is not above 0.5.
    assert means["toxicity probability"].value == pytest.approx(1 / 3)
    assert means["rude replies"].value == pytest.approx(8 / 9)
    assert [mean.n for mean in means.values()] == [3, 3, 9]
