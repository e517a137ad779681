"""Plan published runs that need a pod, and run them from checkpoints of these sizes."""
