"""Learn on small control environments, with the losses that train language models.

A neighbour of the stages, which it never imports: environments and their transitions in place of
prompts and responses, and the same `maths` below. Nothing here writes files; ablations do.
"""
