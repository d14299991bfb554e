"""Fast paths of the cores: which code computes a stack of blocks. All of them compute the same function."""

from hrm_agent.kernels.paths import (
    CHOICES,
    PATHS,
    Accelerated,
    available,
    candidates,
    check_kernel,
    eagerly,
    plainly,
    use,
)

__all__ = ["CHOICES", "PATHS", "Accelerated", "available", "candidates", "check_kernel", "eagerly", "plainly", "use"]
