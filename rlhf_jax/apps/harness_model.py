"""Be a model of lm-evaluation-harness: `rlhf_jax`, for any checkpoint of ours or hf:FOLDER.

What it does where ids are concerned is what the harness' own `hf` model does, so that a checkpoint
and its export have the same numbers: the tokenizer's begin-of-text where it puts one, trailing
spaces of a context moved to its continuation, special tokens read wherever they are spelled,
contexts cut on the left. A reply also ends at the token that ends a turn in the chat template,
which the `hf` model heeds only if generation_config.json names it. `add_bos_token=True` puts before
every text what a document's first token follows here (`Tokenizer.start_ids`), as our own benchmarks
do.

This module needs the package lm_eval, and no torch; nothing else imports it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from lm_eval import utils
from lm_eval.api.model import TemplateLM

from rlhf_jax.apps.chat import load
from rlhf_jax.data.templates import DATE
from rlhf_jax.data.tokenizers import ASSISTANT, EOS, USER
from rlhf_jax.evaluation.checkpoints import LoadedModel
from rlhf_jax.evaluation.harness import read_settings, score_continuations, write_until
from rlhf_jax.evaluation.likelihood import Continuation
from rlhf_jax.models import LanguageModel
from rlhf_jax.training.checkpoints import CheckpointKind

AUTO_BATCH = 32  # what batch_size=auto means, where max_batch_size does not say
MAX_GEN_TOKS = 256  # where a task does not say, as in the harness


class HarnessModel(TemplateLM):
    """Answer the harness' requests with a checkpoint."""

    def __init__(
        self,
        checkpoint: str,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        add_bos_token: bool = False,
        max_length: int | None = None,
    ) -> None:
        """Load the checkpoint.

        Raises:
            ValueError, FileNotFoundError: a model argument that cannot be followed.
        """
        super().__init__()
        del (
            device
        )  # torch's, and "cuda:0" where nobody names one; JAX_PLATFORMS is what counts here
        loaded = load(str(checkpoint), kind=CheckpointKind.LANGUAGE_MODEL, option="checkpoint")
        self.model = LoadedModel(LanguageModel(loaded.config), loaded.params)
        self.ours = loaded.tokenizer
        self.meta = loaded.meta
        self.add_bos_token = add_bos_token
        longest = loaded.config.context_length
        self.max_length = longest if max_length is None else int(max_length)
        if not 1 <= self.max_length <= longest:
            raise ValueError(f"max_length={max_length}: the model's context is {longest} tokens")
        self.batch_size = _read_batch_size(batch_size, max_batch_size)

    # --- tokens -----------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """Return the end-of-text token."""
        return self.ours.eos_id

    @property
    def prefix_token_id(self) -> int:
        """Return what the first token of a text without a context follows."""
        if self.add_bos_token:
            return self.ours.start_ids[-1]
        bos = self.ours.fast.bos_token_id
        return self.ours.eos_id if bos is None else int(bos)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **unused: Any
    ) -> list[int]:
        """Return the ids of a text, behind begin-of-text unless it begins with that."""
        ids = self.ours.encode(string, special=True)
        if add_special_tokens is False:
            return ids
        start = self.ours.start_ids if self.add_bos_token else self.ours.prefix_ids
        return ids if ids[: len(start)] == start else [*start, *ids]

    # --- requests ---------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **unused: Any
    ) -> list[tuple[float, bool]]:
        items = [Continuation(context, ids) for _, context, ids in requests]
        scored = score_continuations(
            self.model, items, context_length=self.max_length, batch_size=self.batch_size
        )
        answers = [(item.logp, item.is_greedy) for item in scored]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], **unused: Any) -> list[float]:
        """Return Σ log π of whole texts, in windows of the model's context that do not overlap."""
        texts = [request.args[0] for request in requests]
        groups = [
            [
                (None, *utils.make_disjoint_window(window))
                for window in utils.get_rolling_token_windows(
                    token_list=self.tok_encode(text),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for text in texts
        ]
        answers = iter(self._loglikelihood_tokens([item for group in groups for item in group]))
        totals = [sum(next(answers)[0] for _ in group) for group in groups]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests: Sequence[Any], **unused: Any) -> list[str]:
        """Write continuations, all requests with the same settings together."""
        settings = [read_settings(request.args[1], MAX_GEN_TOKS) for request in requests]
        written: dict[int, str] = {}
        for group, chosen in enumerate(dict.fromkeys(settings)):
            members = [n for n, wanted in enumerate(settings) if wanted == chosen]
            texts = write_until(
                self.model,
                self.ours,
                [self.tok_encode(requests[n].args[0]) for n in members],
                chosen,
                jax.random.fold_in(jax.random.key(0), group),
                context_length=self.max_length,
                batch_size=self.batch_size,
            )
            written |= zip(members, texts, strict=True)
        answers = [written[n] for n in range(len(requests))]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return answers

    # --- chat -------------------------------------------------------------------------------------

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as text: by the tokenizer's template, or with our own markers."""
        if self.ours.template is None:
            return _with_markers(chat_history, add_generation_prompt)
        text: str = self.ours.fast.apply_chat_template(
            [dict(message) for message in chat_history],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            date_string=DATE.strftime("%d %b %Y"),
        )
        return text

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template's source for the harness' report."""
        if not chat_template:
            return None
        own = f"{USER}question{ASSISTANT}answer{EOS}"
        return own if self.ours.template is None else self.ours.template.source

    @property
    def tokenizer_name(self) -> str:
        """Return what tells this tokenizer from all others."""
        return self.ours.fingerprint()

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness reports of a model."""
        return {
            "model_num_parameters": sum(leaf.size for leaf in jax.tree.leaves(self.model.params)),
            "model_dtype": str(self.model.model.config.compute_dtype),
            "model_stage": self.meta.stage,
            "model_step": self.meta.step,
            "model_sha": self.meta.fingerprint,
        }


def _read_batch_size(batch_size: int | str, max_batch_size: int | None) -> int:
    if str(batch_size).startswith("auto"):
        return max_batch_size or AUTO_BATCH
    if not str(batch_size).isdigit() or int(batch_size) < 1:
        raise ValueError(f"batch_size={batch_size}: expected a number from 1 on, or auto")
    return int(batch_size)


def _with_markers(chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
    """Write a conversation as data/chat.py renders it."""
    parts = []
    last = len(chat_history) - 1
    for number, message in enumerate(chat_history):
        role, content = message["role"], message["content"]
        if role not in ("user", "assistant"):
            raise ValueError(
                f"messages: a {role} message, but the markers {USER} and {ASSISTANT} know two "
                "roles; leave out --system_instruction"
            )
        is_open = number == last and not add_generation_prompt  # the model goes on with it
        end = EOS if role == "assistant" and not is_open else ""
        parts.append((USER if role == "user" else ASSISTANT) + content + end)
    return "".join(parts) + (ASSISTANT if add_generation_prompt else "")
