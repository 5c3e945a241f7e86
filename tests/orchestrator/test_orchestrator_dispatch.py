"""No order of events loses a job, does it twice at once or ends it twice, and none waits for ever."""

from __future__ import annotations

from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.dispatch import Dispatch
from orchestrator.dispatch_decisions import Again, Decision, Fault, GiveUp, Limits, Probe, Rules, Start, Stop
from orchestrator.replica import Standing

RULES = Rules(initial_s=1, factor=2, maximum_s=8, set_aside_after=2, budget=4, report_s=10)
LIMITS = Limits(attempts=4, attempt_s=50, total_s=200)
STUDENTS = ("a", "b")
ADDRESSES = ("one", "two", "three")


class Events(RuleBasedStateMachine):
    """Any events in any order; the model only remembers what was told and what was decided."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatch = Dispatch(RULES)
        self.now = 0.0
        self.count = 0
        self.open: set[int] = set()
        self.ended: dict[int, str] = {}
        self.student_of: dict[int, str] = {}
        self.running: dict[int, Start] = {}
        self.probes: set[tuple[str, str]] = set()
        self.tried: dict[Any, int] = {}
        for student in STUDENTS:
            self.take(self.dispatch.listed(student, ADDRESSES[:2], self.now))

    def take(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Start(job, address, attempt, timeout_s):
                    assert job in self.open
                    assert all(other.job != job for other in self.running.values()), "twice at once"
                    replica = self.dispatch.students[self.student_of[job]].replicas[address]
                    assert replica.trusted
                    assert replica.running <= max(1, replica.slots)
                    assert 0 < timeout_s <= LIMITS.attempt_s
                    self.running[attempt] = decision
                case Stop(attempt):
                    del self.running[attempt]
                case Again(job, attempts, wait_s, _):
                    assert job in self.open
                    assert 0 < wait_s <= RULES.maximum_s
                    assert attempts == self.tried[job] < LIMITS.attempts
                case GiveUp(job, attempts, reason):
                    assert reason
                    assert attempts <= LIMITS.attempts
                    self.end(job, "given up")
                case Probe(student, address):
                    assert (student, address) not in self.probes
                    self.probes.add((student, address))

    def end(self, job: Any, how: str) -> None:
        assert job not in self.ended
        self.open.remove(job)
        self.ended[job] = how

    @rule(student=st.sampled_from(STUDENTS), owner=st.sampled_from(["r1", "r2"]))
    def submit(self, student: str, owner: str) -> None:
        self.count += 1
        self.open.add(self.count)
        self.student_of[self.count] = student
        self.tried[self.count] = 0
        self.take(self.dispatch.submit(self.count, student, LIMITS, self.now, owner=owner))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.open)))
        self.end(job, "withdrawn")
        self.take(self.dispatch.withdraw(job, self.now))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def outcome(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from(sorted(self.running)))
        job = self.running.pop(attempt).job
        self.end(job, "done")
        self.take(self.dispatch.ended(attempt, self.now))
        assert self.dispatch.ended(attempt, self.now) == [], "told twice"

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fault=st.sampled_from(Fault), wait_s=st.sampled_from([None, 0.5, 20.0]))
    def fails(self, data: st.DataObject, fault: Fault, wait_s: float | None) -> None:
        attempt = data.draw(st.sampled_from(sorted(self.running)))
        job = self.running.pop(attempt).job
        self.tried[job] += fault is not Fault.REFUSED and not (fault is Fault.FULL and wait_s is not None)
        self.take(self.dispatch.failed(attempt, fault, "it broke", self.now, wait_s))
        assert self.dispatch.failed(attempt, fault, "again", self.now) == [], "told twice"

    @precondition(lambda self: self.probes)
    @rule(data=st.data(), slots=st.sampled_from([None, 1, 2, 3]), taken=st.integers(0, 3))
    def probed(self, data: st.DataObject, slots: int | None, taken: int) -> None:
        student, address = data.draw(st.sampled_from(sorted(self.probes)))
        self.probes.remove((student, address))
        if slots is None:
            self.take(self.dispatch.unreachable(student, address, self.now))
        else:
            self.take(self.dispatch.reported(student, address, slots, max(0, slots - taken), self.now))

    @rule(student=st.sampled_from(STUDENTS), addresses=st.sets(st.sampled_from(ADDRESSES)))
    def relisted(self, student: str, addresses: set[str]) -> None:
        self.take(self.dispatch.listed(student, sorted(addresses), self.now))

    @rule(student=st.sampled_from(STUDENTS))
    def wanted(self, student: str) -> None:
        self.take(self.dispatch.wanted(student))

    @rule(seconds=st.sampled_from([0.1, 1.0, 7.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.dispatch.tick(self.now))

    @invariant()
    def nothing_is_lost(self) -> None:
        # A replica that has left may come back under its address and be asked anew.
        self.probes = {each for each in self.probes if each[1] in self.dispatch.students[each[0]].replicas}
        assert self.dispatch.jobs == len(self.open)
        assert len(self.open) + len(self.ended) == self.count
        for student in STUDENTS:
            for replica in self.dispatch.students[student].replicas.values():
                own = [
                    start
                    for start in self.running.values()
                    if self.student_of[start.job] == student and start.address == replica.address  # type: ignore[index]
                ]
                assert replica.running == len(own)

    def teardown(self) -> None:
        """With students that answer, everything ends; with none, everything is given up."""
        for _ in range(2000):
            if not self.open:
                break
            for student in STUDENTS:
                self.take(self.dispatch.listed(student, ADDRESSES, self.now))
            for student, address in sorted(self.probes):
                self.probes.remove((student, address))
                self.take(self.dispatch.reported(student, address, 2, 2, self.now))
            for attempt in sorted(self.running):
                job = self.running.pop(attempt).job
                self.end(job, "done")
                self.take(self.dispatch.ended(attempt, self.now))
            if not self.running and not self.probes and self.open:
                wake = self.dispatch.wake_at()
                assert wake is not None, "a job waits for nothing"
                self.now = max(self.now, wake)
                self.take(self.dispatch.tick(self.now))
        assert not self.open
        assert self.dispatch.jobs == 0


TestEvents = Events.TestCase
TestEvents.settings = settings(
    # Shrinking a history takes minutes; the steps of one that fails are printed as they are.
    max_examples=100,
    stateful_step_count=60,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)


def ready(slots: dict[str, int], rules: Rules = RULES, student: str = "a") -> Dispatch:
    dispatch = Dispatch(rules)
    dispatch.listed(student, slots, 0.0)
    for address, count in slots.items():
        dispatch.reported(student, address, count, count, 0.0)
    return dispatch


def starts(decisions: list[Decision]) -> list[tuple[Any, str]]:
    return [(each.job, each.address) for each in decisions if isinstance(each, Start)]


def attempt(decisions: list[Decision]) -> int:
    return next(each.attempt for each in decisions if isinstance(each, Start))


def test_the_least_loaded_replica_gets_the_next_job() -> None:
    dispatch = ready({"big": 4, "small": 1})
    given = [starts(dispatch.submit(job, "a", LIMITS, 0.0))[0][1] for job in range(5)]
    assert sorted(given) == ["big"] * 4 + ["small"]
    # By share of the slots: the small one is full with its first.
    assert given.index("small") <= 1
    assert dispatch.submit("waits", "a", LIMITS, 0.0) == []


def test_slots_that_others_use_are_left_alone() -> None:
    dispatch = Dispatch(RULES)
    dispatch.listed("a", ["one"], 0.0)
    dispatch.reported("a", "one", 3, 1, 0.0)
    assert len(starts(dispatch.submit(1, "a", LIMITS, 0.0))) == 1
    assert dispatch.submit(2, "a", LIMITS, 0.0) == []
    assert Probe("a", "one") in dispatch.tick(5.0)
    # One of ours is running, so two free of three means nobody else is there.
    assert len(starts(dispatch.reported("a", "one", 3, 2, 5.0))) == 1


def test_a_lost_attempt_goes_elsewhere_after_a_pause() -> None:
    dispatch = ready({"one": 1, "two": 1})
    first = dispatch.submit("job", "a", LIMITS, 0.0)
    address = starts(first)[0][1]
    again = dispatch.failed(attempt(first), Fault.LOST, "connection reset", 1.0)
    assert again == [Again("job", 1, 1.0, "connection reset")]
    assert dispatch.tick(1.5) == []
    second = dispatch.tick(2.0)
    assert starts(second)[0][1] != address


def test_a_student_that_others_keep_full_costs_no_attempts_until_the_total_deadline() -> None:
    dispatch = ready({"one": 2})
    decisions = dispatch.submit("x", "a", LIMITS, 0.0)
    asked, now = 0, 0.0
    while not any(isinstance(each, GiveUp) for each in decisions):
        if starts(decisions):
            asked += 1
            decisions = dispatch.failed(attempt(decisions), Fault.FULL, "32 evaluations wait already", now, 5.0)
            assert not starts(decisions), "asked again before it has room"
            continue
        wake = dispatch.wake_at()
        assert wake is not None
        now = wake
        decisions = dispatch.tick(now)
    (given_up,) = (each for each in decisions if isinstance(each, GiveUp))
    assert (given_up.attempts, now) == (0, LIMITS.total_s)
    assert "32 evaluations wait already" in given_up.reason
    assert asked > 10 * LIMITS.attempts / 4
    # One that does not say when it will have room may never have enough for this one.
    first = dispatch.submit("y", "a", LIMITS, now)
    for number in range(1, LIMITS.attempts):
        (again,) = dispatch.failed(attempt(first), Fault.FULL, "too large", now)
        assert isinstance(again, Again)
        assert again.attempts == number
        now += again.wait_s
        first = dispatch.tick(now)
    assert any(isinstance(each, GiveUp) for each in dispatch.failed(attempt(first), Fault.FULL, "too large", now))


def test_a_full_replica_is_passed_over_for_one_with_room() -> None:
    dispatch = ready({"one": 2, "two": 2})
    first = dispatch.submit("x", "a", LIMITS, 0.0)
    ((_, full),) = starts(first)
    ((_, other),) = starts(dispatch.failed(attempt(first), Fault.FULL, "full", 0.0, 5.0))
    assert other != full


def test_what_one_replica_refuses_another_may_do_and_all_refusing_ends_it() -> None:
    dispatch = ready({"one": 1, "two": 1})
    first = dispatch.submit("job", "a", LIMITS, 0.0)
    second = dispatch.failed(attempt(first), Fault.REFUSED, "no such adapter", 1.0)
    assert starts(second)[0][1] != starts(first)[0][1]
    last = dispatch.failed(attempt(second), Fault.REFUSED, "another model", 2.0)
    assert last == [GiveUp("job", 0, "no such adapter; another model")]


def test_a_replica_that_fails_repeatedly_is_set_aside_probed_and_tried_with_one() -> None:
    dispatch = ready({"one": 4})
    attempts = [attempt(dispatch.submit(job, "a", LIMITS, 0.0)) for job in range(3)]
    for each in attempts[:2]:
        dispatch.failed(each, Fault.LOST, "gone", 1.0)
    replica = dispatch.students["a"].replicas["one"]
    assert (replica.standing, replica.running) == (Standing.ASIDE, 1)
    assert dispatch.submit("new", "a", LIMITS, 1.0) == []
    assert dispatch.tick(1.9) == []
    assert Probe("a", "one") in dispatch.tick(2.0)
    assert starts(dispatch.unreachable("a", "one", 3.0)) == []
    # Its second wait is twice the first.
    assert not any(isinstance(each, Probe) for each in dispatch.tick(4.9))
    assert Probe("a", "one") in dispatch.tick(5.0)
    dispatch.reported("a", "one", 4, 4, 5.0)
    assert (replica.standing, replica.running) == (Standing.PROBATION, 1)
    on_trial = dispatch.ended(attempts[2], 6.0)
    assert replica.standing is Standing.READY
    assert len(starts(on_trial)) >= 2


def test_a_student_that_never_answers_is_given_up_at_the_total_deadline_without_attempts() -> None:
    dispatch = Dispatch(RULES)
    dispatch.listed("a", ["one"], 0.0)
    dispatch.submit("job", "a", LIMITS, 10.0)
    given_up: list[Decision] = []
    now = 10.0
    while not given_up:
        assert now < 500
        dispatch.unreachable("a", "one", now)
        wake = dispatch.wake_at()
        assert wake is not None
        now = wake
        given_up = [each for each in dispatch.tick(now) if isinstance(each, GiveUp)]
    assert now == 200.0
    assert given_up == [GiveUp("job", 0, "student 'a' did not answer for 200 s")]


def test_a_job_that_is_not_done_in_its_total_time_is_stopped() -> None:
    dispatch = ready({"one": 1})
    first = dispatch.submit("job", "a", Limits(9, 50, 60), 0.0)
    dispatch.failed(attempt(first), Fault.LOST, "gone", 50.0)
    second = dispatch.tick(51.0)
    assert [each.timeout_s for each in second if isinstance(each, Start)] == [9.0]
    last = dispatch.tick(60.0)
    assert Stop(attempt(second)) in last
    assert any(isinstance(each, GiveUp) and "60 s" in each.reason for each in last)


def test_two_runs_share_a_student_and_the_lower_rank_goes_first() -> None:
    dispatch = ready({"one": 2})
    running = [attempt(dispatch.submit(("r1", number), "a", LIMITS, 0.0, owner="r1")) for number in range(2)]
    for number in (2, 3):
        dispatch.submit(("r1", number), "a", LIMITS, 0.0, owner="r1", rank=(2,))
    dispatch.submit(("r1", "early"), "a", LIMITS, 0.0, owner="r1", rank=(1,))
    dispatch.submit(("r2", 0), "a", LIMITS, 0.0, owner="r2")
    assert starts(dispatch.ended(running[0], 1.0)) == [(("r2", 0), "one")]
    assert starts(dispatch.ended(running[1], 1.0)) == [(("r1", "early"), "one")]


def test_a_replica_that_leaves_keeps_what_it_has_and_gets_no_more() -> None:
    dispatch = ready({"one": 2, "two": 2})
    first = dispatch.submit("x", "a", LIMITS, 0.0)
    gone = starts(first)[0][1]
    stays = "two" if gone == "one" else "one"
    dispatch.listed("a", [stays], 1.0)
    given = [starts(dispatch.submit(job, "a", LIMITS, 1.0)) for job in range(3)]
    assert [each[0][1] for each in given if each] == [stays, stays]
    dispatch.ended(attempt(first), 2.0)
    assert list(dispatch.students["a"].replicas) == [stays]


def test_a_spent_budget_slows_retries_down() -> None:
    dispatch = ready({"one": 8}, Rules(initial_s=1, maximum_s=30, set_aside_after=100, budget=4))
    waits = []
    for job in range(4):
        decisions = dispatch.failed(attempt(dispatch.submit(job, "a", LIMITS, 0.0)), Fault.LOST, "x", 0.0)
        waits += [each.wait_s for each in decisions if isinstance(each, Again)]
    assert waits == [1, 30, 30, 30]
