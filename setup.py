"""Install rlhf_jax: the bounds of what was run here, exact versions in requirements.lock."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

TEST = ["pytest>=8", "pytest-xdist>=3.6", "nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6"]

# What `rlhf-jax train --config=experiments/...` finds where there is no checkout: the configs, and
# what they import. Ablations, control tasks and the figure of all seeds need a checkout.
LEFT_OUT = ["results.py"]
SHIPPED = ["menagerie", "public", "scale", "yours"]


class BuildWithExperiments(build_py):
    """Put the experiment files into the wheel, inside the package (rlhf_jax/shipped.py)."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the checkout is there
            return
        target = Path(self.build_lib) / "rlhf_jax" / "experiments"
        shutil.rmtree(target, ignore_errors=True)
        for name in ["__init__.py", *SHIPPED]:
            source = Path("experiments") / name
            files = sorted(source.rglob("*")) if source.is_dir() else [source]
            kinds = (".py", ".jsonl", ".txt", ".md")
            for file in (f for f in files if f.suffix in kinds and f.name not in LEFT_OUT):
                place = target / file.relative_to("experiments")
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)


setup(
    name="rlhf_jax",
    version=Path("rlhf_jax/VERSION").read_text().strip(),
    description="How ChatGPT is trained, in JAX: SFT, reward models from rankings, PPO-ptx",
    long_description=Path("README.md").read_text() if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["rlhf_jax", "rlhf_jax.*"]),
    package_data={
        "rlhf_jax": ["VERSION", "py.typed", "apps/report.html.jinja", "apps/report.mplstyle"]
    },
    cmdclass={"build_py": BuildWithExperiments},
    entry_points={"console_scripts": ["rlhf-jax = rlhf_jax.command:main"]},
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12,<1",  # 1.0 brings another interface
        "transformers>=5.0,<6",
        "tensorflow-datasets>=4.9.10",
        "ml-collections>=1.1",
        "grain>=0.2.18,<0.3",
        "array-record>=0.8",
        "tokenizers>=0.22",
        "jinja2>=3.1.6",  # transformers renders chat templates with it and does not require it
        "safetensors>=0.5",
        "numpy>=2",
        "scipy>=1.14",
        "regex>=2024.11",
        "absl-py>=2.1",
        "matplotlib>=3.9",
        "rich>=13",
        "tensorboardX>=2.6.2",
        # tensorflow-datasets 4.9 imports these without declaring all of them.
        "psutil>=5",
        "importlib_resources>=6",
    ],
    extras_require={
        "cuda12": ["jax[cuda12]>=0.10,<0.13"],
        "cuda13": ["jax[cuda13]>=0.10,<0.13"],
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "data": ["datasets>=4"],  # public data of the Hugging Face hub
        "torch": ["torch>=2.6"],  # comparisons in tests alone
        "gguf": ["gguf>=0.17"],
        "wandb": ["wandb>=0.20"],  # --track=wandb
        "trackio": ["trackio>=0.40"],  # --track=trackio
        "lm_eval": ["lm_eval>=0.4.13"],  # apps/lm_eval.py; without its own extra for torch
        "control": ["gymnax>=1.0.1"],  # brings gymnasium, pandas and seaborn
        "dev": [*TEST, "ruff>=0.14", "mypy>=1.15"],
    },
)
