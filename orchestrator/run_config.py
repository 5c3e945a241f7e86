"""A run's YAML: what to teach, to whom, how rewards are made and what is kept at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orchestrator.closing import Closing, GroupPolicy
from orchestrator.plan import Across
from tutelage.domain.errors import FieldViolation
from tutelage.domain.evaluation import InnerLoopSettings
from tutelage.domain.policy import Parser, Sampling, StaleCandidates, UpdateSettings
from tutelage.domain.reward import RewardSettings
from tutelage.domain.self_edit import LossMask, Schedule
from tutelage.settings import Inconsistent, Settings


class InlineFormat(Settings):
    """A format of self-edits written into the run itself."""

    name: str = Field(min_length=1, max_length=64)
    """Name shown in reports."""
    prompt: str = Field(min_length=1)
    """Instruction to the teacher; `{title}` and `{text}` are replaced by the task's."""
    parser: Parser
    """How a completion becomes documents."""
    directives: bool = False
    """Whether the completion's first line is a JSON object of directives."""
    max_documents: int = Field(default=0, ge=0, le=2**31 - 1)
    """Most notes of a candidate that are kept, beside what the task gives; 0 means no limit."""


class SamplingConfig(Settings):
    """How the teacher samples."""

    temperature: float = Field(default=1.0, gt=0, le=5)
    """Softmax temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus mass."""
    max_new_tokens: int = Field(default=256, ge=1, le=8192)
    """Longest completion, in tokens."""


class InnerLoopConfig(Settings):
    """The inner loop's settings; directives of an edit may change some of them."""

    rank: int = Field(default=32, ge=1)
    """Rank of the LoRA."""
    alpha: float = Field(default=64.0, gt=0)
    """LoRA alpha; the adapter's scale is alpha / rank."""
    target_modules: tuple[str, ...] = ()
    """Projections that carry LoRA, such as `q_proj`; empty means all linear layers but the head."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    epochs: int = Field(default=10, ge=1)
    """Passes over the documents."""
    batch_size: int = Field(default=1, ge=1)
    """Documents a step."""
    schedule: Schedule = Schedule.LINEAR
    """How the learning rate goes over the steps."""
    loss_mask: LossMask = LossMask.COMPLETION
    """Which tokens of a chat document carry loss."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Clip norm; 0 turns clipping off."""
    adapt_layers: str = Field(default="all", pattern=r"^(all|last-[1-9][0-9]*)$")
    """Decoder layers that carry LoRA: `all`, or `last-4` for the last four; those below are then computed once a
    document and not once an epoch."""
    plateau_epochs: int = Field(default=0, ge=0)
    """Ends the loop after so many epochs in a row without a lower loss; 0 means never."""

    def to_domain(self) -> InnerLoopSettings:
        """The same as the domain's dataclass."""
        values = dict(self)
        layers = values.pop("adapt_layers")
        return InnerLoopSettings(**values, adapt_last_layers=0 if layers == "all" else int(layers[len("last-") :]))


class RewardConfig(Settings):
    """From a report to a reward: weighted gains less what was forgotten."""

    grader_weights: dict[str, float] = Field(default_factory=lambda: {"contains": 1.0, "loglik": 0.1}, min_length=1)
    """Weight of each grader's gain."""
    retention_grader: str = "loglik"
    """Grader by which forgetting is measured on the retention quiz."""
    retention_penalty: float = Field(default=0.0, ge=0)
    """Cost of a point lost on the retention quiz."""
    token_penalty: float = Field(default=0.0, ge=0)
    """Cost of a thousand tokens trained on, passes counted."""
    formula: str = ""
    """Name of a formula that an installed package brings, in place of the weighted sum; empty means the sum."""
    shrink: bool = False
    """Whether means are drawn towards their group's by the share of noise that repeats (2 or more seeds) show."""
    across: Across = Across.MEAN
    """Over several students the `mean` or the `worst`; `per_student` writes candidates for each student by itself."""
    rejected_reward: float | None = None
    """What a rejected edit earns; nothing leaves it unscored."""

    def to_domain(self) -> RewardSettings:
        """The same as the domain's dataclass; `across` is the plan's."""
        return RewardSettings(**{name: value for name, value in dict(self).items() if name != "across"})


class UpdateConfig(Settings):
    """How the teacher learns from a round."""

    when: Literal["round", "never"] = "round"
    """After each round, or never: the teacher then stays as it is."""
    algorithm: str = Field(default="rest_em", min_length=1)
    """One of the teacher's algorithms."""
    rank: int = Field(default=64, ge=1)
    """Rank of the teacher's LoRA."""
    alpha: float = Field(default=128.0, gt=0)
    """LoRA alpha of the teacher."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Learning rate of the update; nothing means the algorithm's own."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the kept candidates."""
    batch_size: int = Field(default=10, ge=1)
    """Candidates a step."""
    min_reward: float = 0.0
    """`rest_em` keeps only what has a reward above this, whatever its rule."""
    max_staleness: int = Field(default=1, ge=0)
    """Most updates that may lie between the policy that wrote a candidate and the one that learns from it."""
    stale: StaleCandidates = StaleCandidates.DROP
    """What happens to older ones: `drop`, or `weight` by importance where the algorithm can (grpo, rloo)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The algorithm's own settings; docs/algorithms.md has those of each."""


class CommitConfig(Settings):
    """What becomes permanent in the students."""

    when: Literal["end", "never"] = "end"
    """After the last round, or not at all."""
    min_gain: float = 0.0
    """An edit is committed only if its gain on `grader` is above this."""
    grader: str = "contains"
    """Grader of the gate."""
    max_retention_loss: float | None = Field(default=None, ge=0)
    """Most that may be lost on the retention quiz, by the reward's retention grader; nothing means no limit."""
    min_retention: float | None = None
    """Least that the version kept may score on the retention quiz by that grader: bounds the loss of many commits."""


class DeadlineConfig(Settings):
    """How long and how often an evaluation is tried."""

    evaluation_s: float = Field(default=1800.0, gt=0)
    """Seconds one attempt of an evaluation may take."""
    attempts: int = Field(default=8, ge=1, le=1000)
    """Attempts, spread with backoff, before a candidate is given up as unscored."""
    total_s: float = Field(default=7200.0, gt=0)
    """Seconds from an evaluation's first start, or for which its student is away, before it is given up as unscored;
    an attempt after a restart of the orchestrator has its time all the same."""


class GroupConfig(Settings):
    """When a group of candidates closes."""

    close: Closing = Closing.RETRY
    """`retry`: when all have ended; `fail_fast`: a candidate given up fails the run; `minimum`: with enough."""
    minimum: int | None = Field(default=None, ge=1)
    """Candidates that must be scored for a group to be learned from; needed with `minimum`."""
    wait_s: float | None = Field(default=None, ge=0)
    """With enough scored, seconds the rest may still take; nothing means for as long as they do not fail."""


def _given_before(field: str, names: Sequence[str], others: Sequence[str] = ()) -> list[FieldViolation]:
    return [
        FieldViolation(
            f"{field}[{index}]", name, "each name once" + (", and none that is a grader's" if others else "")
        )
        for index, name in enumerate(names)
        if name in names[:index] or name in others
    ]


class RunConfig(Settings):
    """A run's settings. `documents`, `retention_quiz` and `limit` are read by the client and never sent."""

    name: str = Field(default="", max_length=200)
    """A title for people."""
    documents: Path | None = None
    """File with the tasks, read by the client."""
    retention_quiz: Path | None = None
    """File with questions about other things, read by the client."""
    limit: int | None = Field(default=None, ge=1)
    """First tasks of the file to use, taken by the client."""
    students: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    """Logical students that learn from each candidate."""
    format: str | InlineFormat = "implications"
    """Name of one of the teacher's formats (`+directives` behind it: with directives), or a format written here."""
    policy: str = Field(default="initial", min_length=1)
    """Who writes in round 1: `initial` (the untouched teacher), `latest` (the newest), `promoted`, or a version."""
    candidates: int = Field(default=4, ge=1, le=1024)
    """Self-edits a task and round."""
    evaluation_seeds: int = Field(default=1, ge=1, le=64)
    """Evaluations of a candidate on each student, with different seeds."""
    rounds: int = Field(default=2, ge=1, le=1000)
    """Rounds of writing, evaluating and updating."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of everything random in the run."""
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    """How the teacher samples."""
    inner_loop: InnerLoopConfig = Field(default_factory=InnerLoopConfig)
    """How students train."""
    graders: tuple[str, ...] = Field(default=("contains", "loglik"), min_length=1)
    """Graders of the quizzes."""
    judges: tuple[str, ...] = ()
    """Judges of the orchestrator that grade answers too: each a grader by its name, but not of the retention quiz."""
    reward: RewardConfig = Field(default_factory=RewardConfig)
    """How a report becomes a reward."""
    update: UpdateConfig = Field(default_factory=UpdateConfig)
    """How the teacher learns."""
    commit: CommitConfig = Field(default_factory=CommitConfig)
    """What is kept at the end."""
    deadlines: DeadlineConfig = Field(default_factory=DeadlineConfig)
    """How long and how often an evaluation is tried."""
    group: GroupConfig = Field(default_factory=GroupConfig)
    """When a group of candidates closes."""
    staleness: int = Field(default=0, ge=0, le=100)
    """Updates that the writing policy may be behind: with 0 a round begins after the update of the one before."""

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        problems = [
            *_given_before("students", self.students),
            *_given_before("graders", self.graders),
            *_given_before("judges", self.judges, self.graders),
        ]
        wanted = {f"reward.grader_weights.{name}": name for name in self.reward.grader_weights}
        if self.commit.when == "end":
            wanted["commit.grader"] = self.commit.grader
        gate = self.commit
        if self.reward.retention_penalty > 0 or (gate.max_retention_loss, gate.min_retention) != (None, None):
            wanted["reward.retention_grader"] = self.reward.retention_grader
        problems += [
            FieldViolation(field, name, f"one of graders ({', '.join((*self.graders, *self.judges))})")
            for field, name in wanted.items()
            if name not in self.graders and (name not in self.judges or field == "reward.retention_grader")
        ]
        group, most = self.group, self.update.max_staleness
        if (group.close is Closing.MINIMUM) != (group.minimum is not None):
            shown = "nothing" if group.minimum is None else str(group.minimum)
            problems.append(FieldViolation("group.minimum", shown, "a number with `close: minimum`, and only there"))
        if group.minimum is not None and group.minimum > self.candidates:
            allowed = f"{self.candidates} at most, as many as there are candidates"
            problems.append(FieldViolation("group.minimum", str(group.minimum), allowed))
        if self.update.stale is StaleCandidates.DROP and self.staleness > most:
            allowed = f"update.max_staleness ({most}) at most: what is older would be dropped"
            problems.append(FieldViolation("staleness", str(self.staleness), allowed))
        if group.wait_s is not None and group.close is not Closing.MINIMUM:
            problems.append(FieldViolation("group.wait_s", str(group.wait_s), "a number only with `close: minimum`"))
        if problems:
            raise Inconsistent(problems)
        return self

    def inner_loop_settings(self) -> InnerLoopSettings:
        """The domain's settings of the inner loop."""
        return self.inner_loop.to_domain()

    def sampling_settings(self) -> Sampling:
        """The domain's sampling."""
        return Sampling(**dict(self.sampling))

    def reward_settings(self) -> RewardSettings:
        """The domain's reward weights."""
        return self.reward.to_domain()

    def needed_judges(self) -> frozenset[str]:
        """The judges without which an evaluation has no reward, or cannot pass the gate; the others only inform."""
        gate = {self.commit.grader} if self.commit.when == "end" else set()
        return frozenset(self.judges) & {*self.reward.grader_weights, *gate}

    def group_policy(self) -> GroupPolicy:
        """When groups close, as the machine's terms."""
        return GroupPolicy(self.group.close, self.group.minimum or 0, self.group.wait_s)

    def update_settings(self) -> UpdateSettings:
        """The domain's settings of a policy update."""
        kept = {name: value for name, value in dict(self.update).items() if name not in ("when", "algorithm")}
        return UpdateSettings(**kept)
