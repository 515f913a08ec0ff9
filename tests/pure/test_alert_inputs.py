"""The metrics that alerts read, as ``taskherd doctor`` knows them, are those of the rules."""

import re
from pathlib import Path

import yaml

from taskherd.observability.metrics import Metrics
from taskherd.observability.scrape import ALERT_INPUTS

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules"
NAME = re.compile(r"\b(?:taskherd|process)_[a-z0-9_]+")


def test_the_inputs_of_the_alerts_are_those_of_the_rules() -> None:
    """Every metric in a rule's expression is an input of its process, and every input is in a rule."""
    groups = [group for path in RULES.glob("*.yml") for group in yaml.safe_load(path.read_text())["groups"]]
    used = {name for group in groups for rule in group["rules"] for name in NAME.findall(rule["expr"])}
    assert used == frozenset().union(*ALERT_INPUTS.values())


def test_every_input_is_declared() -> None:
    """Every input of taskherd itself is a metric that the processes declare."""
    declared = {each.name for each in Metrics().declared}
    inputs = {name.removesuffix("_bucket") for names in ALERT_INPUTS.values() for name in names}
    assert {name for name in inputs if name.startswith("taskherd_")} <= declared
