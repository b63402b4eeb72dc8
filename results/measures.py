"""What a cell shows of a record: a metric of its protocol, or what its pretraining took."""

from __future__ import annotations

from harness.protocol import Metric
from harness.record import Cost, Record
from results.table import Hardware

# The papers print hours to the half and memory without saying whether reserved memory counts.
HOURS = Metric(name="pretrain_hours_per_100_epochs", unit="h", higher_is_better=False)
MEMORY = Metric(name="pretrain_peak_memory_gb", unit="GB", higher_is_better=False)
METRICS = (HOURS, MEMORY)

# A collapsed trunk maps all images to nearly one point, and its neighbours vote at random: DINO's
# Table 7 has 0.1 % there, chance on ImageNet. A healthy one is far above even when undertrained.
_CHANCES = 2
_BY_NEIGHBOURS = "knn_"


def is_cost(metric: str) -> bool:
    """Whether a metric is about the pretraining, not about what it learnt."""
    return metric in [m.name for m in METRICS]


def value_of(record: Record, metric: str) -> float | None:
    """A record's number, in the metric's unit; None where it tells nothing."""
    if not is_cost(metric):
        return record.metrics.get(metric)
    cost, epochs = record.pretrain_cost, (record.recipe or {}).get("epochs", 0)
    if cost is None or not epochs:
        return None
    if metric == HOURS.name:
        return cost.seconds / 3600 * 100 / epochs
    return cost.peak_memory_bytes / 1e9 or None


def collapse(record: Record, metric: str) -> str:
    """Whether the features collapsed, in a few words: kNN is right at most at twice chance level.

    Returns:
        "" if they didn't, or if the metric can't tell.
    """
    value = record.metrics.get(metric)
    classes = record.data.get("val", {}).get("classes", 0)
    if not metric.startswith(_BY_NEIGHBOURS) or value is None or not classes:
        return ""
    chance = 100 / classes
    if value > _CHANCES * chance:
        return ""
    return f"the features collapsed: {value:.2f} % where chance is {chance:.2g} %"


def other_hardware(cost: Cost | None, published: Hardware | None) -> str:
    """In what the hardware differs from the paper's; "" if in nothing that is known."""
    if published is None or cost is None:
        return ""
    if cost.gpus == published.gpus and published.kind.lower() in cost.hardware.lower():
        return ""
    return f"on {published.gpus} × {published.kind}; here on {cost.where}"
