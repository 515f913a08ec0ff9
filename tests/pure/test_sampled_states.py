from __future__ import annotations

from tests.real_agents.protocol import Change
from tests.real_agents.states import LAG, judge

BEGUN, ASKS, ANSWERED, ENDED = (
    Change(10, works=True, in_turn=True),
    Change(12, works=False, in_turn=True),
    Change(15, works=True, in_turn=True),
    Change(18, works=False, in_turn=False, stop_reason="end_turn"),
)
CHANGES = (BEGUN, ASKS, ANSWERED, ENDED)
ENDS = "a turn ended at most 0.50 s after the model's last byte"
AT_MODEL = [(11.0, 11.5), (17.0, 17.5), (18.5, 18.6)]


def test_a_sample_is_wrong_if_it_is_late() -> None:
    """A sample that shows the state before the latest change is wrong once that is longer ago than the lag."""
    true = {10.6: "working", 12.6: "idle", 15.6: "working", 18.6: "idle"}
    assert not judge([*true.items()], CHANGES, AT_MODEL).wrong(LAG)
    late = {10.6: "", 12.6: "working", 15.6: "idle", 18.6: "working"}
    assert [sample.at for sample in judge([*late.items()], CHANGES, AT_MODEL).wrong(LAG)] == [*late]
    soon = {10.4: "", 12.4: "working", 15.4: "idle", 18.4: "working"}
    assert not judge([*soon.items()], CHANGES, AT_MODEL).wrong(LAG)


def test_samples_before_the_first_prompt_are_not_judged() -> None:
    """As long as a workspace starts, its state is not the agent's."""
    assert judge([(9.0, "working")], CHANGES, AT_MODEL).judged == []


def test_the_model_server_knows_when_a_turn_is_with_it() -> None:
    """A turn is with it from the first of its requests to the last; what comes after its end does not count."""
    verdict = judge([(at, "working") for at in (10.7, 11.2, 16.0, 17.7, 18.55)], CHANGES, AT_MODEL)
    assert [sample.at for sample in verdict.judged if sample.at_model] == [11.2, 16.0]
    assert verdict.afterwards == [0.5]


def test_the_figures_name_what_is_wrong() -> None:
    """The figures are in one line, and each wrong sample is in one more."""
    verdict = judge([(11.2, "idle"), (16.0, "working"), (18.7, "working")], CHANGES, AT_MODEL)
    assert verdict.describe().splitlines() == [
        f"2 of 3 samples are wrong beyond {LAG} s of lag, 1 of the 2 with a turn at the model server; {ENDS}",
        "  at 0.00 s: shown 'idle', at work since 1.20 s",
        "  at 7.50 s: shown 'working', not at work since 0.70 s",
    ]
