"""Measure what alignment costs: the loss on the pretraining corpus, and the distance from the reference.

alignment tax   Σ -log π(token | before) / tokens over a validation corpus packed as in pretraining; its rise
                over the pretrained model (Ouyang et al. 2022, section 4.2 and appendix E.6)
KL              E_{x, y~π} [ log π(y|x) - log π_ref(y|x) ] per response, in nats
"""

from collections.abc import Sequence

import numpy as np

from rlhf_jax.data.batches import lm_batches
from rlhf_jax.data.records import Document
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.likelihood import Continuation, block_nll, continuation_logps
from rlhf_jax.models.heads import LanguageModel, Params


def corpus_nll(
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    context_length: int,
    batch_size: int,
    mask_documents: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return Σ nll and the number of tokens of every block of `context_length` tokens of the packed corpus.

    Weigh blocks by their tokens (`estimates.ratio`): a mean of batch means favours the tokens of short
    batches.
    """
    arrays = lm_batches(
        documents,
        tokenizer,
        context_length=context_length,
        batch_size=1,
        seed=0,
        mask_documents=mask_documents,
    ).arrays
    return block_nll(
        model, params, arrays["tokens_BT"], arrays["segments_BT"], batch_size=batch_size
    )


def sequence_kl(
    policy: tuple[LanguageModel, Params],
    reference: tuple[LanguageModel, Params],
    samples: Sequence[Continuation],
    *,
    batch_size: int,
) -> np.ndarray:
    """Return log π(y|x) - log π_ref(y|x) of the policy's own samples at temperature 1, without truncation.

    Their mean estimates KL(π ‖ π_ref) without bias; a single one may be negative.
    """
    logp_N = continuation_logps(*policy, samples, batch_size=batch_size)
    return logp_N - continuation_logps(*reference, samples, batch_size=batch_size)
