"""Read the command lines of the programs here, before anything heavy is imported."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def read_chat(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line of apps/chat.py."""
    parser = argparse.ArgumentParser(
        prog="rlhf-jax chat",
        description="Talk to a checkpoint in the terminal.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    workdirs = "a run's workdir (its newest checkpoint) or WORKDIR/checkpoints/STEP"
    longest = "longest reply in tokens (default: half of the context, at most 256)"
    add("--checkpoint", required=True, help=workdirs)
    add("--reward", help="a reward model's run: prints its score of each reply")
    add("--prompt", help="ask this one question, print the reply and leave")
    add("--temperature", type=float, default=0.7, help="0 is greedy (default %(default)s)")
    add("--top_k", type=int, default=0, help="0 is off (default)")
    add("--top_p", type=float, default=1.0, help="1 is off (default)")
    add("--max_new_tokens", type=int, help=longest)
    add("--num_samples", type=int, default=1, help="replies per message (default 1)")
    add("--seed", type=int, default=0, help="same seed, same replies (default 0)")
    return parser.parse_args(argv)


def read_export(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line of apps/export.py."""
    parser = argparse.ArgumentParser(
        prog="rlhf-jax export",
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
    add("--push_to", metavar="ORG/NAME", default="", help="upload the folder to the hub, too")
    return parser.parse_args(argv)


def read_report(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line of apps/report.py."""
    parser = argparse.ArgumentParser(
        prog="rlhf-jax report", description="Write an HTML page about a run."
    )
    parser.add_argument("run", type=Path, help="a stage's workdir, or a folder of several")
    parser.add_argument("--output", type=Path, help="default: report.html in the run folder")
    return parser.parse_args(argv)
