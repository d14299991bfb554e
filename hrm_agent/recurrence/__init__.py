"""K segments of a core at each of k environment steps, and the backends that compute them.

A core is called through `unroll`, or `run_segments` for one step's segments. They compute with a `Backend`, chosen once
for a module by `use`; without one, with eager torch, the reference that all backends must agree with.
"""

from hrm_agent.recurrence.backends import Backend, reference_kernels, without_compile
from hrm_agent.recurrence.kernel_choice import (
    CHOICES,
    PATHS,
    available,
    candidates,
    check_kernel,
    has_kernels,
    path_of,
    use,
)
from hrm_agent.recurrence.unroll import Rules, Steps, Unrolled, may_stop, relative_change, run_segments, unroll

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
    "may_stop",
    "path_of",
    "reference_kernels",
    "relative_change",
    "run_segments",
    "unroll",
    "use",
    "without_compile",
]
