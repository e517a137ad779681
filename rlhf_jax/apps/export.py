"""Write a checkpoint as a folder that Hugging Face's transformers can load.

    python -m rlhf_jax.apps.export --checkpoint=runs/quickstart/ppo --to=exported/ppo
    >>> AutoModelForCausalLM.from_pretrained("exported/ppo")
    >>> AutoTokenizer.from_pretrained("exported/ppo")

Adapters are merged into the weights. With --adapters_of=NAME they are written alone, in the files
of PEFT, for a base that `peft` will load by that name:

    >>> PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(NAME), "exported/adapters")

NAME is a model of the hub, or a folder into which the checkpoint that the adapters stand on was
exported. It has to be such a folder where chat markers were added to the tokenizer, because the
hub's model has no rows for them.

A reward model becomes a sequence classifier with one label, whose logit is our score without the
head's bias (the bias stands in config.json, see `models.huggingface`).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.models.config import from_dict
from rlhf_jax.models.huggingface import TOKEN_IDS, save_pretrained
from rlhf_jax.models.huggingface.peft import save_peft
from rlhf_jax.models.lora import describe_adapters, merge_adapters, partition
from rlhf_jax.training.checkpoints import CheckpointKind
from rlhf_jax.training.pretrained import load_model, read_tokenizer


def export(checkpoint: str, folder: str | Path, *, max_shard_bytes: int) -> None:
    """Write a checkpoint's model and tokenizer; errors are those of load_model, save_pretrained."""
    params, meta = load_model(checkpoint)
    tokenizer = read_tokenizer(checkpoint)
    if meta.kind == CheckpointKind.CLASSIFIER:
        raise ValueError(
            f"{checkpoint} is a classifier (stage {meta.stage}): language and reward models can be "
            "exported"
        )
    save_pretrained(
        folder,
        from_dict(meta.model),
        merge_adapters(params),
        kind=meta.kind,
        token_ids=_token_ids(tokenizer),
        max_shard_bytes=max_shard_bytes,
    )
    tokenizer.save(folder)


def export_adapters(checkpoint: str, folder: str | Path, *, base_name: str) -> None:
    """Write a checkpoint's adapters and tokenizer for PEFT.

    Raises:
        ValueError: there are no adapters, or PEFT cannot hold them.
        FileExistsError: the folder holds adapters already.
    """
    params, meta = load_model(checkpoint)
    tokenizer = read_tokenizer(checkpoint)
    config = describe_adapters(params)
    if config is None:
        raise ValueError(
            f"{checkpoint} has no adapters (stage {meta.stage}); leave --adapters_of out to export "
            "the model"
        )
    if Path(folder, "adapter_config.json").exists():
        raise FileExistsError(f"{folder} has adapter_config.json already: name a new folder")
    save_peft(folder, partition(params)[1], config, from_dict(meta.model), base_name=base_name)
    tokenizer.save(folder)


def _token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    ids = {name: getattr(tokenizer.fast, name) for name in TOKEN_IDS}
    ids["pad_token_id"] = tokenizer.pad_id
    return {name: number for name, number in ids.items() if number is not None}


def main(argv: Sequence[str] | None = None) -> int:
    """Export a checkpoint, and return 2 if that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.apps.export",
        description="Write a checkpoint for transformers.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    shards = "split larger weights (default %(default)s)"
    adapters = "write adapters alone, for a base of this name"
    add("--checkpoint", required=True, help="a run's workdir, or WORKDIR/checkpoints/STEP")
    add("--to", required=True, help="a new folder")
    add("--max_shard_gigabytes", type=float, default=5.0, help=shards)
    add("--adapters_of", metavar="NAME", default="", help=adapters)
    arguments = parser.parse_args(argv)
    checkpoint, folder = arguments.checkpoint, arguments.to
    try:
        if arguments.adapters_of:
            export_adapters(checkpoint, folder, base_name=arguments.adapters_of)
        else:
            max_shard_bytes = int(arguments.max_shard_gigabytes * 1e9)
            export(checkpoint, folder, max_shard_bytes=max_shard_bytes)
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    print(f"wrote {folder}: {', '.join(sorted(path.name for path in Path(folder).iterdir()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
