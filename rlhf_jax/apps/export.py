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

Beside the weights lie generation_config.json with every id that ends a response, the chat template
(of our own markers, too) and a model card, README.md. --push_to=ORG/NAME uploads the folder to the
Hugging Face hub, by the login of `hf auth login`; a new repository is private.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.apps.arguments import read_export

if __name__ == "__main__":
    read_export(sys.argv[1:])  # --help and slips are answered before JAX is imported

from rlhf_jax.apps.model_card import write_model_card
from rlhf_jax.data.chat import render
from rlhf_jax.data.records import Message
from rlhf_jax.data.templates import MARKERS
from rlhf_jax.data.tokenizers import Tokenizer, load_tokenizer
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
    if meta.kind == CheckpointKind.LANGUAGE_MODEL:
        _write_stops_and_template(Path(folder), tokenizer)
    write_model_card(Path(folder), checkpoint, meta, library="transformers")


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
    _write_stops_and_template(Path(folder), tokenizer)
    write_model_card(Path(folder), checkpoint, meta, library="peft")


def push(folder: str | Path, repository: str) -> str:
    """Upload an exported folder to the hub and return its address; a new repository is private.

    Raises:
        ValueError: the hub refuses it; the folder stays as it is.
    """
    import huggingface_hub

    try:
        api = huggingface_hub.HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=repository)
    except Exception as error:  # No login, no right, no network: one type each.
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"--push_to={repository}: {type(error).__name__}: {reason}; {folder} is complete: log "
            f"in with `hf auth login` and run `hf upload {repository} {folder}`"
        ) from error
    return f"https://huggingface.co/{repository}"


def _write_stops_and_template(folder: Path, tokenizer: Tokenizer) -> None:
    """Write what makes transformers' `generate` stop, and `apply_chat_template` write our ids."""
    stops = {**_token_ids(tokenizer), "eos_token_id": list(tokenizer.stop_ids)}
    (folder / "generation_config.json").write_text(json.dumps(stops, indent=2) + "\n")
    if tokenizer.template is not None:
        return
    prefix = tokenizer.fast.backend_tokenizer.decode(
        tokenizer.prefix_ids, skip_special_tokens=False
    )
    path = folder / "chat_template.jinja"
    path.write_text(prefix + MARKERS)
    if not _template_agrees(folder):
        path.unlink()
        print(
            f"   {folder}: no chat_template.jinja: with this tokenizer transformers would write "
            "other ids by it; render conversations by rlhf_jax.data.chat",
            flush=True,
        )


def _template_agrees(folder: Path) -> bool:
    """Say whether transformers gives a conversation the ids that it has here."""
    turns = ("user", "a 1?"), ("assistant", "b 2."), ("user", "c")
    tokenizer = load_tokenizer(folder)
    try:
        ours = render(tokenizer, [Message(*turn) for turn in turns], generation_prompt=True).ids
    except ValueError:  # a vocabulary without these letters
        return False
    rendered = tokenizer.fast.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        add_generation_prompt=True,
        return_dict=False,
    )
    return bool(ours == rendered)


def _token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    ids = {name: getattr(tokenizer.fast, name) for name in TOKEN_IDS}
    ids["pad_token_id"] = tokenizer.pad_id
    return {name: number for name, number in ids.items() if number is not None}


def main(argv: Sequence[str] | None = None) -> int:
    """Export a checkpoint, and return 2 if that cannot be done."""
    arguments = read_export(argv)
    checkpoint, folder, repository = arguments.checkpoint, arguments.to, arguments.push_to
    try:
        if repository and not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            raise ValueError(f"--push_to={repository}: expected ORG/NAME")
        if arguments.adapters_of:
            export_adapters(checkpoint, folder, base_name=arguments.adapters_of)
        else:
            max_shard_bytes = int(arguments.max_shard_gigabytes * 1e9)
            export(checkpoint, folder, max_shard_bytes=max_shard_bytes)
        names = sorted(path.name for path in Path(folder).iterdir())
        print(f"wrote {folder}: {', '.join(names)}")
        if repository:
            print(f"pushed to {push(folder, repository)}")
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
