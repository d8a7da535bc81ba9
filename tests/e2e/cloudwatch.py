"""What CloudWatch makes of a function: metrics of its log's lines, alarms of metrics, as template.yaml has them."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

from samcli.yamlhelper import yaml_parse

from documents import REPOSITORY

NAMESPACE = "pressrun"
MINUTE = 60


@cache
def template() -> dict:
    return yaml_parse((REPOSITORY / "template.yaml").read_text())


def resources(kind: str) -> dict[str, dict]:
    """The properties of a template's resources of a kind, by name."""
    found = template()["Resources"].items()
    return {name: resource["Properties"] for name, resource in found if resource["Type"] == kind}


@dataclass(frozen=True)
class Metric:
    """A metric of CloudWatch's, which the same name with other dimensions is not."""

    namespace: str
    name: str
    dimensions: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Datum:
    """What somebody has emitted of a metric at a moment, in seconds since 1970."""

    metric: Metric
    at: float
    values: tuple[float, ...]

    def later(self, seconds: float) -> "Datum":
        return replace(self, at=self.at + seconds)


def datum(namespace: str, name: str, dimension: str, of: str, at: float, value: float) -> Datum:
    return Datum(Metric(namespace, name, frozenset({(dimension, of)})), at, (value,))


def metric_lines(log_lines: Iterable[str]) -> list[dict]:
    """The lines of a log that are of the Embedded Metric Format. Each has to be whole, and alone in its line."""
    return [json.loads(line) for line in log_lines if '"_aws"' in line]


def data(lines: Iterable[dict]) -> list[Datum]:
    """What CloudWatch takes out of such lines."""
    return [
        Datum(
            Metric(directive["Namespace"], emitted["Name"], frozenset((name, line[name]) for name in dimensions)),
            line["_aws"]["Timestamp"] / 1000,
            values(line[emitted["Name"]]),
        )
        for line in lines
        for directive in line["_aws"]["CloudWatchMetrics"]
        for dimensions in directive["Dimensions"]
        for emitted in directive["Metrics"]
    ]


def values(emitted: object) -> tuple[float, ...]:
    return tuple(emitted) if isinstance(emitted, list) else (emitted,)


STATISTICS = {"Sum": sum, "Maximum": max}


@dataclass(frozen=True)
class Alarm:
    """One of template.yaml's alarms, in a stack whose queues and function are called so."""

    properties: dict
    names: dict[str, str]

    @property
    def stats(self) -> dict[str, tuple[Metric, str]]:
        """The metrics that it looks at, by the names that its expression has for them, each with its statistic."""
        if "Metrics" not in self.properties:
            return {"it": (self.metric(self.properties), self.properties["Statistic"])}
        stats = [(query["Id"], query["MetricStat"]) for query in self.properties["Metrics"] if "MetricStat" in query]
        return {name: (self.metric(stat["Metric"]), stat["Stat"]) for name, stat in stats}

    def metric(self, said: dict) -> Metric:
        dimensions = frozenset((item["Name"], self.resolve(item["Value"])) for item in said["Dimensions"])
        return Metric(said["Namespace"], said["MetricName"], dimensions)

    def resolve(self, value: str | dict) -> str:
        if isinstance(value, str):
            return value
        ((function, argument),) = value.items()
        return self.names[argument if function == "Ref" else ".".join(argument)]

    @property
    def expression(self) -> str:
        """What is added up."""
        if "Metrics" not in self.properties:
            return "it"
        (expression,) = [query["Expression"] for query in self.properties["Metrics"] if "Expression" in query]
        return expression

    @property
    def period(self) -> int:
        if "Period" in self.properties:
            return self.properties["Period"]
        (period,) = {query["MetricStat"]["Period"] for query in self.properties["Metrics"] if "MetricStat" in query}
        return period

    def goes_off(self, emitted: Iterable[Datum], at: float) -> bool:
        """Whether it is in alarm at a moment, when the period that this is in has passed."""
        assert self.properties["ComparisonOperator"] == "GreaterThanThreshold"
        assert self.properties["TreatMissingData"] == "notBreaching"
        emitted = list(emitted)
        periods = self.properties["EvaluationPeriods"]
        last = int(at // self.period)
        found = [self.value(emitted, period) for period in range(last - periods + 1, last + 1)]
        breaching = sum(value is not None and value > self.properties["Threshold"] for value in found)
        return breaching >= self.properties.get("DatapointsToAlarm", periods)

    def value(self, emitted: list[Datum], period: int) -> float | None:
        """What it compares for a period. In a sum, what is missing is 0, as in CloudWatch's metric math."""
        stats = self.stats
        terms = re.fullmatch(r"\w+( \+ \w+)*", self.expression)[0].split(" + ")
        assert sorted(terms) == sorted(stats), "every metric is in the expression"
        found = [self.statistic(emitted, *stats[term], period) for term in terms]
        present = [value for value in found if value is not None]
        return sum(present) if present else None

    def statistic(self, emitted: list[Datum], metric: Metric, statistic: str, period: int) -> float | None:
        of_period = [item.values for item in emitted if item.metric == metric and int(item.at // self.period) == period]
        return STATISTICS[statistic](value for values in of_period for value in values) if of_period else None


def alarms(**names: str) -> dict[str, Alarm]:
    """Every alarm of template.yaml, by its name there."""
    return {name: Alarm(properties, names) for name, properties in resources("AWS::CloudWatch::Alarm").items()}


def widgets() -> list[dict]:
    """What is on the dashboard, with `${…}` as it stands in the template."""
    (dashboard,) = resources("AWS::CloudWatch::Dashboard").values()
    return json.loads(dashboard["DashboardBody"]["Fn::Sub"])["widgets"]


def metrics_on_the_dashboard() -> set[tuple[str, str]]:
    """Namespaces and names."""
    found = set()
    for widget in widgets():
        before: list = []
        for line in widget["properties"].get("metrics", []):
            if isinstance(line[0], dict):
                found.add(re.search(r'\{(\w+),.* MetricName="(\w+)"', line[0]["expression"]).groups())
                continue
            before = [before[index] if item == "." else item for index, item in enumerate(line)]
            found.add((before[0], before[1]))
    return found
