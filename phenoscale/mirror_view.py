"""The saved view that a study's experiment opens with: columns of the table, and charts.

MLflow keeps a saved view as a tag of the experiment: its key stands in links, its value is JSON
with the state of the page as a text within. The format is documented nowhere; it was read from the
dashboard of MLflow 3.17 and from a view saved there by hand, and a test opens ours in a browser.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

VIEW_KEY = "phenoscale"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
VIEW_NAME = "Score against compute"
LOG_FLOPS = "log10_training_flops"
"""The charts of MLflow have no logarithmic axis for points, so the logarithm is a metric."""
TRIALS = "tags.`phenoscale.kind` != 'study' and tags.`phenoscale.kind` != 'superseded'"
"""Filter of all runs of trials and baselines, failures that were made good excepted."""
TABLE_COLUMNS = ("objective", "backbone", "data_fraction", "seed", "workers")
METRIC_COLUMNS = (LOG_FLOPS, "held_out_loss", "unique_sites", "cpu_s", "peak_memory_gib")
_TRAINING = "workflowType=machine_learning"  # the pages for training, not those for language models


def view_fragment(experiment_id: str) -> str:
    """The part after the host of the link that opens the view."""
    return (
        f"#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW_KEY}&compareRunsMode=CHART"
        f"&{_TRAINING}"
    )


def trials_fragment(experiment_id: str, metric: str) -> str:
    """The part after the host of the link to the table of trials and baselines, best first."""
    order = quote(f"metrics.`{metric}`", safe="")
    return (
        f"#/experiments/{experiment_id}/runs?searchFilter={quote(TRIALS, safe='')}"
        f"&orderByKey={order}&orderByAsc=false&{_TRAINING}"
    )


def saved_view(metric: str, created_ms: int) -> str:
    """The value of the tag `VIEW_TAG`.

    Args:
        metric: the study's headline score.
        created_ms: when the experiment was made, so that the same view is the same text.
    """
    columns = [f"tags.`{name}`" for name in TABLE_COLUMNS]
    columns += [f"metrics.`{name}`" for name in (metric, *METRIC_COLUMNS)]
    state = {
        "searchFilter": TRIALS,
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "selectedColumns": columns,
        "columnOrder": columns,
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,  # else MLflow sorts the sections by name
        "compareRunSections": [
            _section("phenoscale-study", VIEW_NAME, shown=True),
            _section("phenoscale-metrics", "Model metrics", shown=False),
        ],
        "compareRunCharts": _charts(metric),
    }
    envelope = {
        "name": VIEW_NAME,
        "createdAt": created_ms,
        "updatedAt": created_ms,
        "state": json.dumps(state, separators=(",", ":")),
    }
    return json.dumps(envelope, separators=(",", ":"))


def _section(uuid: str, name: str, *, shown: bool) -> dict[str, Any]:
    return {"uuid": uuid, "name": name, "display": shown, "isReordered": False}


def _charts(metric: str) -> list[dict[str, Any]]:
    score = {"type": "METRIC", "key": metric}
    flops = {"type": "METRIC", "key": LOG_FLOPS}
    loss = {"metricKey": "loss", "selectedMetricKeys": ["loss"], "xAxisScaleType": "log"}
    return [
        _chart("score-flops", "SCATTER") | {"xaxis": flops, "yaxis": score},
        _chart("score", "BAR") | {"metricKey": metric},
        _chart("loss", "LINE") | loss,
    ]


def _chart(name: str, kind: str) -> dict[str, Any]:
    """A chart of the first section; room for more runs than a study has, so that all are drawn."""
    return {
        "uuid": f"phenoscale-{name}",
        "type": kind,
        "metricSectionId": "phenoscale-study",
        "runsCountToCompare": 1000,
        "deleted": False,
        "isGenerated": False,
    }
