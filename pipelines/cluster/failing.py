"""When Ray Train starts workers again: never after an error that says what the user should mend."""

from typing import Any

from ray.train.v2._internal.execution.failure_handling import (
    DefaultFailurePolicy,
    FailureDecision,
)

from pipelines.mirror import Mirror
from pipelines.training import failure


class OnlyUnexpected(DefaultFailurePolicy):  # type: ignore[misc,unused-ignore]
    """Ray's own policy, but a `SegcoreError` of a worker ends the run.

    Args:
        failure_config: of the trainer.
        run: folder of the run, where workers leave such an error.
    """

    def __init__(self, failure_config: Any, run: Mirror) -> None:
        super().__init__(failure_config)
        self._run = run

    def make_decision(self, training_failed_error: Any) -> Any:
        """Whether to start the workers again."""
        if failure.read(self._run) is not None:
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)
