"""EC2 nodes for Ray: spot where there is any, else on demand. Named by aws.yaml.

Ray asks for a type again and again that the cloud refuses, and never for another (measured with Ray
2.60 and either of its autoscalers: aws.md). So the way from spot to on demand is gone here, where a
node is made.
"""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

# Error codes of RunInstances that speak of spot capacity, price or quota (Amazon EC2 API Reference,
# "Error codes"); any other is a mistake that on demand would meet as well.
NO_SPOT = frozenset(
    {
        "InsufficientInstanceCapacity",
        "MaxSpotInstanceCountExceeded",
        "SpotMaxPriceTooLow",
        "UnfulfillableCapacity",
    }
)


class SpotFirst(AWSNodeProvider):
    """Ray's own provider, but for that."""

    def create_node(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        """Starts `count` instances, on demand where spot is refused in every subnet."""
        try:
            return super().create_node(node_config, tags, count)
        except NodeLaunchException as refused:
            if "InstanceMarketOptions" not in node_config or refused.category not in NO_SPOT:
                raise
        on_demand = {k: v for k, v in node_config.items() if k != "InstanceMarketOptions"}
        return super().create_node(on_demand, tags, count)
