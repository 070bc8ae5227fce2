"""Katib's metrics collector for text, and what the trial controller makes of its log (references: katib.md §1.6, §3.5).

After pkg/metricscollector/v1beta1/file-metricscollector and trial_controller_util.go of kubeflow/katib v0.19.0.
"""

import math
import re
from datetime import datetime

FILTER = re.compile(r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)")
UNAVAILABLE = "unavailable"
_NEVER = "0001-01-01T00:00:00Z"


def observation_log(text, metrics):
    """Rows (time, name, value); the objective, which is the first metric, gets a row even if it was never printed."""
    rows = []
    for line in text.split("\n"):
        if not any(metric in line for metric in metrics):
            continue
        first, _, rest = line.partition(" ")
        time = first if rest and _time(first) else _NEVER
        rows += [
            (time, found[1].strip(), found[2].strip())
            for found in FILTER.finditer(line)
            if found[1].strip() in metrics
        ]
    if not any(name == metrics[0] for _, name, _ in rows):
        return [(_NEVER, metrics[0], UNAVAILABLE)]
    return rows


def observation(rows, strategies):
    """Min, max and latest of every metric that has a strategy, as text."""
    metrics = {
        s["name"]: {"name": s["name"], "min": UNAVAILABLE, "max": UNAVAILABLE, "latest": UNAVAILABLE}
        for s in strategies
    }
    times = dict.fromkeys(metrics, "")
    for time, name, text in sorted(rows, key=lambda row: row[0]):  # the database orders by time alone
        if name not in metrics:
            continue
        metric, number = metrics[name], _go_float(text)
        if number is not None:
            if metric["min"] == UNAVAILABLE:
                metric["min"] = metric["max"] = text
            elif number < float(metric["min"]):
                metric["min"] = text
            elif number > float(metric["max"]):
                metric["max"] = text
        if time >= times[name]:
            times[name], metric["latest"] = time, text
    # Go leaves an empty text out: the value of `loss=nan`, which the filter does not read.
    return {"metrics": [{key: text for key, text in metric.items() if text} for metric in metrics.values()]}


def chosen(metric, strategy):
    """The one value of a metric that is sent to the suggestion service."""
    value = metric.get(strategy, "")
    return metric.get("latest", "") if value == UNAVAILABLE and strategy in ("min", "max") else value


def available(observation_, strategies):
    """Whether a trial has a value of its objective: else it is MetricsUnavailable."""
    if not observation_ or not observation_["metrics"]:
        return False
    wanted = strategies[0]["name"]
    return any(m["name"] == wanted and m.get("latest") != UNAVAILABLE for m in observation_["metrics"])


def _time(text):
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).tzinfo is not None
    except ValueError:
        return False


def _go_float(text):
    """Go's ParseFloat takes "NaN" and "inf", and refuses the empty text."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if text.strip() and not (math.isnan(number) and text.lower() != "nan") else None
