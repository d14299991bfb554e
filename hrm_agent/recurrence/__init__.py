"""The one seam: K segments of a core at each of k environment steps, and what computes them.

`unroll` is the only way in. What computes is a `Backend`, chosen once for a module by `use`; without one it is eager
torch, the reference that all others must agree with.
"""

from hrm_agent.recurrence.backends import (
    CHOICES,
    PATHS,
    Backend,
    available,
    candidates,
    check_kernel,
    has_kernels,
    path_of,
    reference_kernels,
    use,
    without_compile,
)
from hrm_agent.recurrence.unroll import Rules, Steps, Unrolled, relative_change, run_segments, unroll

__all__ = [
    "CHOICES",
    "PATHS",
    "Backend",
    "Rules",
    "Steps",
    "Unrolled",
    "available",
    "candidates",
    "check_kernel",
    "has_kernels",
    "path_of",
    "reference_kernels",
    "relative_change",
    "run_segments",
    "unroll",
    "use",
    "without_compile",
]
