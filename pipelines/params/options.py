"""Options of architectures that stand in params.yaml by name."""

from typing import Any

# So that `dvc exp run -S` finds them; an architecture that lacks one refuses it when it is set.
COMMON_OPTIONS = frozenset(
    {"backbone", "norm", "dropout", "base_channels", "upsample", "head_kernel"}
)


def drop_unset(options: dict[str, Any]) -> dict[str, Any]:
    """Options without the common ones that are null: those say nothing. Others may mean it."""
    return {k: v for k, v in options.items() if v is not None or k not in COMMON_OPTIONS}
