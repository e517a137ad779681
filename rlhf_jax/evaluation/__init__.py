"""Floor 4: what a checkpoint is worth, measured. Functions of models, texts and judges; never of configs."""
