"""From text and chat to token ids and labels: a model's own chat template, or a plain form where it has none.

The text of a chat is cut only where a trained message begins and ends, exactly where generation would begin: what is
trained on `answer` follows the very ids that `prompt_ids` asks with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from tutelage.domain.errors import InvalidInput
from tutelage.domain.self_edit import ChatDocument, ChatMessage, LossMask, Role, TextDocument, TrainingDocument

NO_LOSS = -100
"""The label of a token that carries no loss."""


def prompt_ids(tokenizer: Any, user_text: str, system: str | None = None) -> list[int]:
    """Ids that ask for an answer: the chat template with its generation prompt, else `Question: ...\\nAnswer:`."""
    messages = [] if not system else [ChatMessage(Role.SYSTEM, system)]
    messages.append(ChatMessage(Role.USER, user_text))
    return _encode(tokenizer, _rendered(tokenizer, messages, ask=True))


def document_ids(tokenizer: Any, document: TrainingDocument, loss_mask: LossMask) -> tuple[list[int], list[int]]:
    """Input ids and labels of a document, equally long; -100 where a token carries no loss.

    Text ends with EOS and carries loss on all of it. Under COMPLETION a chat document carries loss on the messages
    marked `train`, with their end-of-turn token but not their role header; under ALL on every token.
    """
    if isinstance(document, TextDocument):
        if not document.text.strip():
            raise InvalidInput.of("document.text", document.text, "text that is not empty")
        ids = [*tokenizer(document.text)["input_ids"]]
        if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids.append(tokenizer.eos_token_id)
        return ids, list(ids)
    if not document.messages:
        raise InvalidInput.of("document.messages", "", "at least one message")
    return _chat_ids(tokenizer, document, loss_mask)


def _chat_ids(tokenizer: Any, document: ChatDocument, loss_mask: LossMask) -> tuple[list[int], list[int]]:
    messages = list(document.messages)
    whole = _rendered(tokenizer, messages, ask=False)
    ids: list[int] = []
    labels: list[int] = []

    def add(start: int, end: int, *, trained: bool) -> None:
        piece = _encode(tokenizer, whole[start:end], first=not ids)
        learned = _turn_length(tokenizer, piece) if trained else 0
        ids.extend(piece)
        labels.extend(piece[:learned] + [NO_LOSS] * (len(piece) - learned))

    # Where text is cut follows `train` alone, so that both masks see the same ids.
    done = 0
    for index, message in enumerate(messages):
        if message.train:
            start = max(done, _body_start(tokenizer, messages[: index + 1], whole))
            end = max(start, _turn_end(tokenizer, messages[: index + 1], whole, start))
            add(done, start, trained=False)
            add(start, end, trained=True)
            done = end
    add(done, len(whole), trained=False)
    if not _has_template(tokenizer) and tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
        labels.append(tokenizer.eos_token_id if messages[-1].train else NO_LOSS)
    return ids, list(ids) if loss_mask is LossMask.ALL else labels


def _body_start(tokenizer: Any, messages: Sequence[ChatMessage], whole: str) -> int:
    """Where in `whole` the last message's own content starts: after the prompt that asks for it, as at generation."""
    last = messages[-1]
    if last.role is Role.ASSISTANT and len(messages) > 1:
        return _shared_length(_rendered(tokenizer, messages[:-1], ask=True), whole)
    before = _shared_length(_rendered(tokenizer, messages[:-1], ask=False), whole) if len(messages) > 1 else 0
    start = whole.find(last.content.strip(), before)
    if start < 0:
        return before
    # The space before a word belongs to the word's token.
    return start - 1 if whole[:start].endswith(" ") else start


def _turn_end(tokenizer: Any, messages: Sequence[ChatMessage], whole: str, start: int) -> int:
    """Where in `whole` the turn of the last message ends, whose content is looked for from `start` on."""
    turn, content = _rendered(tokenizer, messages, ask=False), messages[-1].content.strip()
    shared = _shared_length(turn, whole)
    at = whole.find(content, start)
    if shared == len(turn) or at < 0:
        return shared
    # Some templates put before the last turn what they leave out once others follow; what is behind it stays.
    end = at + len(content)
    behind = max(0, turn.find(content, _body_start(tokenizer, messages, turn))) + len(content)
    return end + _shared_length(turn[behind:], whole[end:])


def _turn_length(tokenizer: Any, body: list[int]) -> int:
    """How many ids of a turn the model must learn: up to its end-of-turn token, not the white space after."""
    special = set(tokenizer.all_special_ids)
    last = max((place for place, token in enumerate(body) if token in special), default=len(body) - 1)
    return last + 1


def _shared_length(left: str, right: str) -> int:
    return next(
        (at for at, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), min(len(left), len(right))
    )


def _has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def _rendered(tokenizer: Any, messages: Sequence[ChatMessage], *, ask: bool) -> str:
    if _has_template(tokenizer):
        plain = [{"role": message.role.value, "content": message.content} for message in messages]
        try:
            # Answers are short and graded as they are: a model that may think first, as Qwen3, is asked not to. Its
            # template puts an empty thought before what it is trained on, which must be part of the question then.
            return str(
                tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=ask, enable_thinking=False)
            )
        except TemplateError as error:
            roles = ", ".join(message.role.value for message in messages)
            raise InvalidInput.of(
                "document.messages", roles, f"roles that this model's template takes ({error})"
            ) from error
    lead = {Role.SYSTEM: "", Role.USER: "Question: ", Role.ASSISTANT: "Answer: "}
    text = "\n".join(lead[message.role] + message.content for message in messages)
    # No space after the last colon: most tokenizers hold a word and the space before it in one token.
    return text + "\nAnswer:" if ask else text


def _encode(tokenizer: Any, text: str, *, first: bool = True) -> list[int]:
    """Ids of a piece of rendered text; without a template, what the tokenizer puts first (BOS) comes first."""
    if not text:
        return []
    special = first and not _has_template(tokenizer)
    ids = list(tokenizer(text, add_special_tokens=special)["input_ids"])
    if special and ids[-1:] == [tokenizer.eos_token_id]:
        ids.pop()
    return ids


def stop_ids(tokenizer: Any, model: Any) -> frozenset[int]:
    """Every id that ends an answer: EOS of tokenizer, generation settings and configuration, and the end of turn."""
    found: set[int] = set()
    sources = (getattr(model, "generation_config", None), getattr(model, "config", None), tokenizer)
    for source in sources:
        value = getattr(source, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or [])
    if _has_template(tokenizer):
        turn = _rendered(tokenizer, [ChatMessage(Role.USER, "?"), ChatMessage(Role.ASSISTANT, "!")], ask=False)
        ids = _encode(tokenizer, turn)
        special = set(tokenizer.all_special_ids)
        after = [token for token in ids[-3:] if token in special]
        found.update(after[-1:])
    return frozenset(int(item) for item in found)


def tokenizer_hash(tokenizer: Any) -> str:
    """Lower-case hex SHA-256 of vocabulary, special tokens and template: equal hashes give equal ids for equal text."""
    digest = hashlib.sha256()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        digest.update(backend.to_str().encode())
    else:
        digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    digest.update(repr(sorted((key, str(value)) for key, value in tokenizer.special_tokens_map.items())).encode())
    digest.update(str(getattr(tokenizer, "chat_template", None) or "").encode())
    return digest.hexdigest()
