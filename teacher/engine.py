"""Writing self-edits: a prompt, a policy version, n completions, each parsed into a self-edit or a rejection.

One base model serves every policy version; a version is a LoRA adapter that is loaded when it is first asked for. One
write runs at a time: the adapters of one model cannot serve two versions at once.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from teacher import metrics
from teacher.answering import greedy_answers
from teacher.config import TeacherSettings
from teacher.constrained import Constraint, first_line_grammar
from teacher.decoding import enable_grouped_decoding
from teacher.formats import check_format, render_prompt, reply_start, unreadable_in
from teacher.parsing import chosen_names, parse_completion
from teacher.policies import PolicyStore
from teacher.readable import readable
from teacher.sampling import Sampled, sample_completions
from tutelage.domain.canonical import derived_seed
from tutelage.domain.errors import FieldViolation, InvalidInput
from tutelage.domain.policy import Candidate, Format, Sampling
from tutelage.domain.task import Task
from tutelage.models.chat import prompt_ids, stop_ids, tokenizer_hash
from tutelage.models.loading import LoadedModel
from tutelage.v1 import policy_pb2

LEAST = 1e-6
"""Temperature and nucleus mass that float32 still samples with; far below what any text is written by."""


class Writer:
    """The serving model with its adapters."""

    def __init__(self, loaded: LoadedModel, policies: PolicyStore, settings: TeacherSettings) -> None:
        enable_grouped_decoding(loaded.model)
        self.loaded = loaded
        self.tokenizer_hash = tokenizer_hash(loaded.tokenizer)
        self._policies = policies
        self._settings = settings
        self._stop_ids = stop_ids(loaded.tokenizer, loaded.model)
        self._lock = threading.Lock()
        self._adapted: Any = None
        self._adapters: OrderedDict[str, None] = OrderedDict()

    def write(
        self,
        task: Task,
        format: Format,
        candidates: int,
        sampling: Sampling,
        policy_version: str,
        seed: int,
        *,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Candidate]:
        """Candidates in the order in which they end.

        The same arguments give the same candidates, on the same machine with the same number of threads.

        InvalidInput for a bad format or sampling or a document longer than the context, NotFound for an unknown policy.
        """
        self.check(format, candidates, sampling)
        adapter = self._policies.adapter_folder(policy_version)
        prompt = self.prompt_of(task, format)
        self._check_length(task.id, len(prompt), sampling.max_new_tokens)
        # Each candidate is sampled by its own seed alone.
        seeds = [derived_seed(seed, index) for index in range(candidates)]
        started = time.monotonic()
        metrics.TOKENS.labels("prompt").inc(len(prompt))
        metrics.TASK_REPAIRS.inc(unreadable_in(task))
        with self._lock, self._serving(policy_version, adapter) as model:
            form = self._form(format, candidates)
            for sampled in sample_completions(
                model, prompt, seeds, sampling, self._stop_ids, form=form, cancelled=cancelled
            ):
                yield self._candidate(sampled, prompt, task, format, policy_version, seeds[sampled.row], sampling)
        metrics.WRITE_SECONDS.observe(time.monotonic() - started)

    def answer(
        self,
        prompts: Sequence[str],
        policy_version: str,
        max_new_tokens: int,
        *,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[int, str]]:
        """Place and text of each prompt's answer, in the order in which they end; greedy, many in a batch.

        InvalidInput for any policy but the first, which no update changes, and for a prompt longer than the context.
        """
        tokenizer, limits = self.loaded.tokenizer, self._settings
        asked = [prompt_ids(tokenizer, readable(prompt)[0]) for prompt in prompts]
        self._check_answers(asked, policy_version, max_new_tokens)
        metrics.TOKENS.labels("prompt").inc(sum(map(len, asked)))
        # A model without a chat template goes on with a question of its own in the next line.
        one_line = not getattr(tokenizer, "chat_template", None)
        with self._lock, self._serving(policy_version, None) as model:
            for place, ids in greedy_answers(
                model, asked, max_new_tokens, self._stop_ids, limits.answer_batch_tokens, cancelled=cancelled
            ):
                metrics.TOKENS.labels("completion").inc(len(ids))
                text = tokenizer.decode(ids, skip_special_tokens=True).strip()
                yield place, text.split("\n", 1)[0].strip() if one_line else text

    def healthy(self) -> bool:
        """True once the model has computed a token; what keeps it from that is raised.

        One that writes is not asked: what it writes, or how that ends, tells its caller.
        """
        if not self._lock.acquire(blocking=False):
            return True
        try:
            with torch.inference_mode():
                ids_BT = torch.zeros((1, 1), dtype=torch.long, device=self.loaded.device)
                # Waited for: a GPU tells of its faults only then.
                int(self.loaded.model(input_ids=ids_BT, use_cache=False).logits.argmax())
        except torch.OutOfMemoryError:
            # An update beside it may fill the device for a while; the model is sound.
            return True
        finally:
            self._lock.release()
        return True

    def check(self, format: Format, candidates: int, sampling: Sampling) -> None:
        """InvalidInput for what no task could be written with."""
        check_format(format)
        self._check(candidates, sampling)

    def check_task(self, task: Task, format: Format, max_new_tokens: int) -> None:
        """InvalidInput for a task whose prompt and completion are together longer than the context."""
        self._check_length(task.id, len(self.prompt_of(task, format)), max_new_tokens)

    def prompt_of(self, task: Task, format: Format) -> list[int]:
        """What a completion is sampled from: ids of the instruction as a chat, and of the reply's given beginning."""
        ids = prompt_ids(self.loaded.tokenizer, render_prompt(format, task))
        start = reply_start(format)
        return ids + list(self.loaded.tokenizer(start, add_special_tokens=False)["input_ids"]) if start else ids

    def _form(self, format: Format, rows: int) -> Constraint | None:
        """What holds the beginning of each completion to its form, where the format has one."""
        grammar = first_line_grammar(format, chosen_names())
        return Constraint(self.loaded.tokenizer, grammar, rows) if grammar else None

    def _candidate(
        self,
        sampled: Sampled,
        prompt: list[int],
        task: Task,
        format: Format,
        version: str,
        seed: int,
        sampling: Sampling,
    ) -> Candidate:
        written = self.loaded.tokenizer.decode(sampled.ids, skip_special_tokens=True)
        text = reply_start(format) + written
        # What counts is what the model wrote: a given beginning alone is still an empty completion.
        parsed = parse_completion(text if written.strip() else "", format, task, ended=sampled.ended)
        metrics.count_parsed(parsed)
        metrics.TOKENS.labels("completion").inc(len(sampled.ids))
        rollout = policy_pb2.Rollout(
            policy_version=version,
            tokenizer_hash=self.tokenizer_hash,
            prompt_ids=prompt,
            completion_ids=sampled.ids,
            log_probs=sampled.log_probs,
            ended=sampled.ended,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            forced=sampled.forced,
        )
        return Candidate(
            index=sampled.row,
            policy_version=version,
            format=f"{format.name}: {parsed.chosen_format}" if parsed.chosen_format else format.name,
            text=text.encode("utf-8", "replace").decode("utf-8"),
            result=parsed.result,
            rollout=rollout.SerializeToString(deterministic=True),
            completion_tokens=len(sampled.ids),
            seed=seed,
            duplicates_removed=parsed.duplicates_removed,
        )

    @contextlib.contextmanager
    def _serving(self, version: str, adapter: Path | None) -> Iterator[Any]:
        """The model under one policy version; call with the lock held."""
        if adapter is None:
            if self._adapted is None:
                yield self.loaded.model
                return
            with self._adapted.disable_adapter():
                yield self._adapted
            return
        if version not in self._adapters:
            if self._adapted is None:
                self._adapted = PeftModel.from_pretrained(self.loaded.model, str(adapter), adapter_name=version)
            else:
                self._adapted.load_adapter(str(adapter), adapter_name=version)
            self._adapters[version] = None
            self._adapted.eval()
        self._adapters.move_to_end(version)
        self._adapted.set_adapter(version)
        while len(self._adapters) > self._settings.serving_policies:
            oldest, _ = self._adapters.popitem(last=False)
            self._adapted.delete_adapter(oldest)
        yield self._adapted

    def _check(self, candidates: int, sampling: Sampling) -> None:
        limits = self._settings
        wrong = []
        if not 1 <= candidates <= limits.max_candidates:
            wrong.append(FieldViolation("candidates", str(candidates), f"1 to {limits.max_candidates}"))
        if sampling.temperature != 0 and not LEAST <= sampling.temperature <= 10:
            allowed = f"0 (greedy), or {LEAST:g} to 10"
            wrong.append(FieldViolation("sampling.temperature", str(sampling.temperature), allowed))
        if not LEAST <= sampling.top_p <= 1:
            wrong.append(FieldViolation("sampling.top_p", str(sampling.top_p), f"{LEAST:g} to 1"))
        if not 1 <= sampling.max_new_tokens <= limits.max_new_tokens:
            allowed = f"1 to {limits.max_new_tokens}"
            wrong.append(FieldViolation("sampling.max_new_tokens", str(sampling.max_new_tokens), allowed))
        if wrong:
            raise InvalidInput(wrong)

    def _check_answers(self, asked: Sequence[Sequence[int]], policy_version: str, max_new_tokens: int) -> None:
        most, context, first = self._settings.max_new_tokens, self.loaded.context_length, self._policies.initial.version
        wrong = []
        if policy_version != first:
            wrong.append(FieldViolation("policy_version", policy_version, f"the first policy, {first}"))
        if not 1 <= max_new_tokens <= most:
            wrong.append(FieldViolation("max_new_tokens", str(max_new_tokens), f"1 to {most}"))
        wrong += [
            FieldViolation(
                f"prompts[{place}]", f"{len(ids)} tokens", f"at most {context} with {max_new_tokens} new ones"
            )
            for place, ids in enumerate(asked)
            if len(ids) + max_new_tokens > context
        ]
        if wrong:
            raise InvalidInput(wrong)

    def _check_length(self, task: str, prompt: int, max_new_tokens: int) -> None:
        context = self.loaded.context_length
        if prompt + max_new_tokens > context:
            raise InvalidInput.of(
                "task.document.text",
                f"a prompt of {prompt} tokens for task {task!r} and {max_new_tokens} new ones",
                f"at most {context} tokens together (the context): shorten the document or sampling.max_new_tokens",
            )
