"""Settings of published runs that need a pod: to plan, and to run from checkpoints of these sizes."""
