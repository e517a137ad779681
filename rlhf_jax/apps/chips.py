"""What makers publish about their chips: memory, memory bandwidth, bfloat16 matrix products, links to other chips.

Sources: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, Jouppi et al. 2023 for the links of v4; NVIDIA's data sheets of A100 80GB
SXM, H100 SXM and H200 SXM, dense rates. Links are all of a chip's together in one direction, half of both.
Those of GPUs are NVLink, inside one node of eight; between nodes a link is usually an eighth of that, so a mesh that crosses
nodes is slower than its bound. So is a TPU whose mesh axis does not use all axes of its torus.
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """Bytes, bytes per second, bfloat16 operations per second, bytes per second."""

    memory: float
    bandwidth: float
    flops: float
    link: float


CHIPS = {
    "a100": Chip(80e9, 2.039e12, 312e12, 300e9),
    "h100": Chip(80e9, 3.35e12, 989e12, 450e9),
    "h200": Chip(141e9, 4.8e12, 989e12, 450e9),
    "v4": Chip(32e9, 1.2e12, 275e12, 300e9),
    "v5e": Chip(16e9, 0.819e12, 197e12, 200e9),
    "v5p": Chip(95e9, 2.765e12, 459e12, 600e9),
    "v6e": Chip(32e9, 1.638e12, 918e12, 400e9),
}
USABLE = 0.92  # of the memory: the rest belongs to the runtime, compiled programs and fragmentation
