"""Do the standard works as a PyTorch user does them.

Runs in an environment of its own, see benchmarks/compare.py.

    generate      transformers' `generate`
    sft, reward   a plain loop: forward, backward, clip, AdamW (faster than TRL's trainers)
    ppo           TRL's PPOTrainer, stopped after every iteration by a callback

Same shapes as benchmarks/works.py; dropout off, no gradient checkpointing. `--dtype=bfloat16` is
autocast, as TRL's bf16=True.
"""

import copy
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from benchmarks.worker import parse_work, serve

P, R, T = 32, 64, 128
# width, layers, heads, vocabulary, prompts, rows, pairs
SIZES = {
    "S512": (256, 4, 8, 512, 64, 32, 16),
    "S50k": (256, 4, 8, 50257, 64, 32, 16),
    "M": (768, 12, 12, 50257, 16, 4, 4),
}


def shape(size: str) -> GPT2Config:
    """Return GPT-2's shape; the two last ids are end and padding."""
    width, layers, heads, vocab = SIZES[size][:4]
    return GPT2Config(  # type: ignore[call-arg]
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        vocab_size=vocab,
        n_positions=T,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        num_labels=1,
        bos_token_id=vocab - 2,
        eos_token_id=vocab - 2,
        pad_token_id=vocab - 1,
    )


def tokens(size: str, rows: int, length: int) -> torch.Tensor:
    """Return random tokens, none of them special."""
    return torch.randint(
        2, SIZES[size][3] - 2, (rows, length), generator=torch.Generator().manual_seed(0)
    )


def precision(dtype: str) -> Any:
    """Return autocast for bfloat16."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def generate(size: str, dtype: str) -> Callable[[], dict[str, float]]:
    """Make the work of sampling 64 new tokens after every prompt."""
    model = GPT2LMHeadModel(shape(size)).eval()
    prompts = tokens(size, SIZES[size][4], P)

    def run() -> dict[str, float]:
        start = time.perf_counter()
        with torch.no_grad(), precision(dtype):
            texts = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=True,
                top_k=0,
                top_p=1.0,
                min_new_tokens=R,
                max_new_tokens=R,
            )
        assert texts.shape[1] == P + R
        return {"seconds": time.perf_counter() - start}

    return run


def _train(
    model: torch.nn.Module, loss: Callable[[], torch.Tensor], dtype: str
) -> Callable[[], dict[str, float]]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)

    def run() -> dict[str, float]:
        start = time.perf_counter()
        with precision(dtype):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"seconds": time.perf_counter() - start}

    return run


def sft(size: str, dtype: str) -> Callable[[], dict[str, float]]:
    """Make the work of one update of the language model."""
    model = GPT2LMHeadModel(shape(size)).train()
    batch = tokens(size, SIZES[size][5], T)

    def loss() -> torch.Tensor:
        logits = model(batch).logits[:, :-1].float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    return _train(model, loss, dtype)


def reward(size: str, dtype: str) -> Callable[[], dict[str, float]]:
    """Make the work of one update of a reward model on pairs."""
    model = GPT2ForSequenceClassification(shape(size)).train()
    batch = tokens(size, 2 * SIZES[size][6], T)

    def loss() -> torch.Tensor:
        chosen, rejected = model(batch).logits[:, 0].float().chunk(2)
        return -torch.nn.functional.logsigmoid(chosen - rejected).mean()

    return _train(model, loss, dtype)


def ppo(size: str, dtype: str) -> Callable[[], dict[str, float]]:
    """Run TRL's trainer in a thread that stops after every iteration until it is told to go on."""
    from transformers import TrainerCallback

    go, done = threading.Semaphore(0), threading.Semaphore(0)

    class Stop(TrainerCallback):
        """Hand over after an iteration."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del args, state, control, kwargs
            done.release()
            go.acquire()

    trainer = _trl_trainer(size, dtype, Stop())

    def train() -> None:
        go.acquire()
        trainer.train()

    threading.Thread(target=train, daemon=True).start()

    def run() -> dict[str, float]:
        start = time.perf_counter()
        go.release()
        done.acquire()
        return {"seconds": time.perf_counter() - start}

    return run


def _trl_trainer(size: str, dtype: str, callback: Any) -> Any:
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    vocab = SIZES[size][3]
    prompts = SIZES[size][4]
    words = WordLevel({f"w{i}": i for i in range(vocab)}, unk_token="w0")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words),
        eos_token=f"w{vocab - 2}",
        pad_token=f"w{vocab - 1}",
        padding_side="left",
    )
    policy = GPT2LMHeadModel(shape(size))
    value = GPT2ForSequenceClassification(shape(size))
    config = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=prompts,
        gradient_accumulation_steps=1,
        num_mini_batches=4,
        num_ppo_epochs=4,
        total_episodes=prompts * 1000,
        response_length=R,
        stop_token=None,
        temperature=1.0,
        local_rollout_forward_batch_size=prompts,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=dtype == "bfloat16",
        gradient_checkpointing=False,
        learning_rate=1e-5,
        disable_tqdm=True,
    )
    dataset = Dataset.from_dict({"input_ids": tokens(size, prompts, P).tolist()})
    return PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=copy.deepcopy(policy),
        reward_model=copy.deepcopy(value),
        value_model=value,
        train_dataset=dataset,
        eval_dataset=dataset,
        callbacks=[callback],
    )


WORKS = {"generate": generate, "sft": sft, "reward": reward, "ppo": ppo}


def main() -> None:
    """Build one work and serve it."""
    args = parse_work(__doc__, WORKS, SIZES)
    serve(WORKS[args.work](args.size, args.dtype))


if __name__ == "__main__":
    main()
