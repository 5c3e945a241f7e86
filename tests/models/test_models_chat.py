"""Ids and labels of documents: loss where it belongs, and training that starts where generation would."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tutelage.domain.errors import InvalidInput
from tutelage.domain.self_edit import ChatDocument, ChatMessage, LossMask, Role, TextDocument, question_answer
from tutelage.models.chat import NO_LOSS, document_ids, prompt_ids, stop_ids, tokenizer_hash
from tutelage.models.tiny import write_tiny_model

TRIMMING_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + (m['content'] | trim) + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
THINKING_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)
"""As Qwen3's: the last turn of an assistant has thought, if of nothing, and whoever asks may ask for no thought."""
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<|>\r"), min_size=1, max_size=20).filter(
    lambda text: bool(text.strip())
)
PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    chat = AutoTokenizer.from_pretrained(write_tiny_model(tmp_path_factory.mktemp("chat")))
    trimming = AutoTokenizer.from_pretrained(write_tiny_model(tmp_path_factory.mktemp("trimming")))
    trimming.chat_template = TRIMMING_TEMPLATE
    thinking = AutoTokenizer.from_pretrained(write_tiny_model(tmp_path_factory.mktemp("thinking")))
    thinking.chat_template = THINKING_TEMPLATE
    plain = AutoTokenizer.from_pretrained(write_tiny_model(tmp_path_factory.mktemp("plain"), chat_template=False))
    return {"chat": chat, "trimming": trimming, "thinking": thinking, "plain": plain}.__getitem__


def learned(tokenizer: Any, labels: list[int]) -> str:
    return str(tokenizer.decode([label for label in labels if label != NO_LOSS]))


@pytest.mark.parametrize("kind", ["chat", "trimming", "thinking", "plain"])
@PROPERTY
@given(
    turns=st.lists(st.tuples(WORDS, WORDS, st.booleans()), min_size=1, max_size=3),
)
@example(turns=[("Who?", "m", True), ("Where?", "end", True)])
def test_labels_are_the_ids_or_no_loss(
    tokenizer: Callable[[str], Any], kind: str, turns: list[tuple[str, str, bool]]
) -> None:
    reader = tokenizer(kind)
    messages = []
    for question, answer, train in turns:
        messages += [ChatMessage(Role.USER, question), ChatMessage(Role.ASSISTANT, answer, train=train)]
    document = ChatDocument(tuple(messages))
    ids, labels = document_ids(reader, document, LossMask.COMPLETION)
    assert len(ids) == len(labels)
    assert all(label in (NO_LOSS, token) for token, label in zip(ids, labels, strict=True))
    assert any(label != NO_LOSS for label in labels) == any(train for _, _, train in turns)
    same_ids, all_labels = document_ids(reader, document, LossMask.ALL)
    assert all_labels == same_ids == ids
    if kind in ("chat", "thinking"):
        text = "".join(f"{answer}<|im_end|>" for _, answer, train in turns if train)
        assert learned(reader, labels) == text


@pytest.mark.parametrize("kind", ["chat", "trimming", "thinking", "plain"])
@PROPERTY
@given(question=WORDS, answer=WORDS)
def test_training_on_an_answer_follows_the_very_prompt(
    tokenizer: Callable[[str], Any], kind: str, question: str, answer: str
) -> None:
    reader = tokenizer(kind)
    prompt = prompt_ids(reader, question)
    ids, labels = document_ids(reader, question_answer(question, answer), LossMask.COMPLETION)
    assert ids[: len(prompt)] == prompt
    assert labels[: len(prompt)] == [NO_LOSS] * len(prompt)
    assert labels[len(prompt)] != NO_LOSS
    # No thought is asked for, and none is learned: answers are short, and thoughts are no part of them.
    assert "think" in question + answer or "<think>" not in learned(reader, labels)
    last = [label for label in labels if label != NO_LOSS][-1]
    assert last == reader.eos_token_id


def test_a_model_without_template_gets_the_plain_form(tokenizer: Callable[[str], Any]) -> None:
    reader = tokenizer("plain")
    ids, labels = document_ids(reader, question_answer("Where?", "Here"), LossMask.COMPLETION)
    assert reader.decode(ids) == "Question: Where?\nAnswer: Here<|endoftext|>"
    assert learned(reader, labels) == " Here<|endoftext|>"
    assert reader.decode(prompt_ids(reader, "Where?", system="Be brief.")) == "Be brief.\nQuestion: Where?\nAnswer:"


@pytest.mark.parametrize("mask", list(LossMask))
def test_text_ends_with_eos_and_all_of_it_carries_loss(tokenizer: Callable[[str], Any], mask: LossMask) -> None:
    reader = tokenizer("chat")
    ids, labels = document_ids(reader, TextDocument("Notes."), mask)
    assert ids == labels
    assert reader.decode(ids) == "Notes.<|im_end|>"


def test_empty_documents_and_refused_roles_are_invalid(tokenizer: Callable[[str], Any]) -> None:
    with pytest.raises(InvalidInput, match=r"document\.text"):
        document_ids(tokenizer("chat"), TextDocument(" \n"), LossMask.ALL)
    with pytest.raises(InvalidInput, match=r"document\.messages"):
        document_ids(tokenizer("chat"), ChatDocument(()), LossMask.ALL)
    with pytest.raises(InvalidInput, match="no system role"):
        document_ids(tokenizer("trimming"), ChatDocument((ChatMessage(Role.SYSTEM, "x"),)), LossMask.ALL)


def test_stop_ids_and_hash_follow_the_tokenizer(tokenizer: Callable[[str], Any]) -> None:
    chat, plain = tokenizer("chat"), tokenizer("plain")
    assert stop_ids(chat, None) == {chat.convert_tokens_to_ids("<|im_end|>")}
    assert stop_ids(plain, None) == {plain.convert_tokens_to_ids("<|endoftext|>")}
    assert tokenizer_hash(chat) == tokenizer_hash(chat)
    assert len({tokenizer_hash(tokenizer(kind)) for kind in ("chat", "trimming", "plain")}) == 3


def test_stop_ids_finds_the_end_of_turn_that_eos_is_not(tmp_path: Path) -> None:
    reader = AutoTokenizer.from_pretrained(write_tiny_model(tmp_path))
    reader.eos_token = "<|endoftext|>"
    ids = reader.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert stop_ids(reader, None) == set(ids)
