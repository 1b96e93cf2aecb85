"""A scaling policy that asks nobody: the group has the size it was given."""

from typing import Any

from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy


class FixedGroup(FixedScalingPolicy):  # type: ignore[misc,unused-ignore]
    """A fixed group of workers without the actor that coordinates autoscaling."""

    def after_controller_start(self, *args: Any, **kwargs: Any) -> None:
        """Do not start the coordinator."""

    def _maybe_send_resource_request(self) -> None:
        """Do not ask it for resources."""

    def _cancel_resource_request(self) -> None:
        """Nothing was asked for."""
