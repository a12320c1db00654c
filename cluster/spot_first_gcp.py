"""Compute Engine nodes for Ray: spot where there is any, else on demand. Named by gcp.yaml.

Why: see spot_first_aws.py, which does the same on EC2.
"""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider

# Errors of an instance's creation that speak of capacity or of the quota for spot ("Troubleshooting
# resource availability" and "Allocation quotas" in Compute Engine's documentation).
NO_SPOT = ("ZONE_RESOURCE_POOL_EXHAUSTED", "RESOURCE_POOL_EXHAUSTED", "STOCKOUT", "QUOTA_EXCEEDED")


class SpotFirst(GCPNodeProvider):
    """Ray's own provider, but for that."""

    def create_node(
        self, base_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        """Starts `count` instances, on demand where there is no capacity for spot."""
        scheduling = base_config.get("scheduling", {})
        try:
            return super().create_node(base_config, tags, count)
        except Exception as refused:  # Ray raises a plain Exception of the operation's error
            spot = scheduling.get("provisioningModel") == "SPOT"
            if not spot or not any(code in str(refused) for code in NO_SPOT):
                raise
        on_demand = {"provisioningModel": "STANDARD", "onHostMaintenance": "TERMINATE"}
        return super().create_node({**base_config, "scheduling": on_demand}, tags, count)
