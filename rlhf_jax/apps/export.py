"""Write a checkpoint as a folder that Hugging Face's transformers can load.

    python -m rlhf_jax.apps.export --checkpoint=runs/quickstart/ppo --to=exported/ppo
    >>> AutoModelForCausalLM.from_pretrained("exported/ppo"), AutoTokenizer.from_pretrained("exported/ppo")

Adapters are merged into the weights. With --adapters_of=NAME they are written alone, in the files of PEFT, for the base that
`peft` will load as NAME (a model of the hub, or a folder that this program wrote of the checkpoint they stand on):

    >>> PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(NAME), "exported/adapters")

The tokenizer is written beside them. Where chat markers were added to it, NAME must be such a folder: the hub's has no rows for
them.

A reward model becomes a sequence classifier with one label, whose logit is our score without the head's bias (the bias
stands in config.json, see `models.huggingface`).
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
    """Write model and tokenizer of a checkpoint; errors are those of `load_model` and `save_pretrained`."""
    (params, meta), tokenizer = load_model(checkpoint), read_tokenizer(checkpoint)
    if meta.kind == CheckpointKind.CLASSIFIER:
        raise ValueError(
            f"{checkpoint} is a classifier (stage {meta.stage}): language and reward models can be exported"
        )
    shape, ids = from_dict(meta.model), _token_ids(tokenizer)
    save_pretrained(
        folder,
        shape,
        merge_adapters(params),
        kind=meta.kind,
        token_ids=ids,
        max_shard_bytes=max_shard_bytes,
    )
    tokenizer.save(folder)


def export_adapters(checkpoint: str, folder: str | Path, *, base_name: str) -> None:
    """Write a checkpoint's adapters and tokenizer for PEFT; ValueError where there are none, or PEFT could not hold them."""
    (params, meta), tokenizer = load_model(checkpoint), read_tokenizer(checkpoint)
    config = describe_adapters(params)
    if config is None:
        raise ValueError(
            f"{checkpoint} has no adapters (stage {meta.stage}); leave --adapters_of out to export the model"
        )
    if Path(folder, "adapter_config.json").exists():
        raise FileExistsError(f"{folder} has adapter_config.json already: name a new folder")
    save_peft(folder, partition(params)[1], config, from_dict(meta.model), base_name=base_name)
    tokenizer.save(folder)


def _token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    found = {name: getattr(tokenizer.fast, name) for name in TOKEN_IDS}
    return {name: number for name, number in found.items() if number is not None} | {
        "pad_token_id": tokenizer.pad_id
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Export; status 2 if that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.apps.export",
        description="Write a checkpoint for transformers.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint", required=True, help="a run's workdir, or WORKDIR/checkpoints/STEP"
    )
    parser.add_argument("--to", required=True, help="a new folder")
    parser.add_argument(
        "--max_shard_gigabytes",
        type=float,
        default=5.0,
        help="split larger weights (default %(default)s)",
    )
    parser.add_argument(
        "--adapters_of",
        metavar="NAME",
        default="",
        help="write adapters alone, for a base of this name",
    )
    arguments = parser.parse_args(argv)
    try:
        if arguments.adapters_of:
            export_adapters(arguments.checkpoint, arguments.to, base_name=arguments.adapters_of)
        else:
            export(
                arguments.checkpoint,
                arguments.to,
                max_shard_bytes=int(arguments.max_shard_gigabytes * 1e9),
            )
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    print(
        f"wrote {arguments.to}: {', '.join(sorted(path.name for path in Path(arguments.to).iterdir()))}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
