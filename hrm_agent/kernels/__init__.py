"""Fast paths of the cores: which code computes a stack of blocks. All of them compute the same function."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hrm_agent.kernels.paths import (
        CHOICES,
        PATHS,
        Accelerated,
        Switched,
        available,
        candidates,
        check_kernel,
        reference_kernels,
        use,
        without_compile,
    )

__all__ = [
    "CHOICES",
    "PATHS",
    "Accelerated",
    "Switched",
    "available",
    "candidates",
    "check_kernel",
    "reference_kernels",
    "use",
    "without_compile",
]


def __getattr__(name: str) -> Any:
    """Imported when first asked for, so that `build` can compile before torch is imported."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hrm_agent.kernels import paths

    return getattr(paths, name)
