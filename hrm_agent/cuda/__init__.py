"""What `device=cuda` does beyond moving tensors: graphs, bfloat16, and two halves of the environments in turn.

Every piece is a switch of the configuration's group `cuda`, and one that cannot work says so in one line and leaves the
plain path. On the CPU none of this is used. What is device independent (static buffers, halves, statistics that stay
where they are computed) also runs on the CPU, where `graphs.Again` stands in for the capture: tests hold it there.
"""

from hrm_agent.cuda.accelerator import Accelerator
from hrm_agent.cuda.settings import CudaConfig

__all__ = ["Accelerator", "CudaConfig"]
