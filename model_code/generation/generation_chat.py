"""Chats: messages that the model's own template turns into a prompt, with tools where it has a place for them."""

from dataclasses import dataclass, field
from typing import Any

from handler_common import Request, read_body, read_request

FIELDS = ("inputs", "messages", "tools", "parameters")
MAX_MESSAGES = 1000


@dataclass
class Chat(Request):
    """A request of chats. Its texts are what the template makes of them, once they are known."""

    chats: list[list[dict[str, Any]]] = field(default_factory=list, repr=False)
    tools: list[Any] | None = field(default=None, repr=False)


def read(data: Any, content_type: str | None, known: tuple[str, ...]) -> Request:
    """A request: prompts, or chats. Raises ValueError with what is wrong with it."""
    marks = ('"role"', '"messages"') if isinstance(data, str) else (b'"role"', b'"messages"')
    if not any(mark in data for mark in marks):  # no JSON is read twice that need not be
        return read_request(data, content_type, known)
    body = read_body(data, content_type)
    if isinstance(body, list) and _is_chat(body):
        body = {"inputs": body}
    if not isinstance(body, dict) or not ("messages" in body or _is_chat(body.get("inputs"))):
        return read_request(data, content_type, known)
    for name in body:
        if name not in FIELDS:
            raise ValueError(f"Unknown field {name!r}. A chat has {', '.join(FIELDS)}.")
    if "messages" in body and "inputs" in body:
        raise ValueError('A request has "messages" or "inputs", not both.')
    parameters = body.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise ValueError('"parameters" must be a JSON object.')
    for name in parameters:
        if name not in known:
            raise ValueError(f"Unknown parameter {name!r}. Known: {', '.join(known)}.")
    parameters = {name: value for name, value in parameters.items() if value is not None}
    where = "messages" if "messages" in body else "inputs"
    given = body[where]
    single = not (isinstance(given, list) and given and isinstance(given[0], list))
    chats = [given] if single else given
    for place, chat in enumerate(chats):
        _check(chat, where if single else f"{where}[{place}]")
    tools = body.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ValueError('"tools" must be a list of objects, each the JSON schema of a function.')
    return Chat([""] * len(chats), single, parameters, chats=chats, tools=tools or None)


def _is_chat(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) or (isinstance(first, list) and bool(first) and isinstance(first[0], dict))


def _check(chat: Any, name: str) -> None:
    if not isinstance(chat, list) or not chat:
        raise ValueError(f'{name} must be a list of messages: {{"role": ..., "content": ...}}.')
    if len(chat) > MAX_MESSAGES:
        raise ValueError(f"{name} has {len(chat)} messages; at most {MAX_MESSAGES} are read.")
    for place, message in enumerate(chat):
        here = f"{name}[{place}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f'{here} must be {{"role": ..., "content": ...}}.')
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            continue
        if isinstance(content, list):
            content = _joined(content, here)
        if not isinstance(content, str):
            raise ValueError(f"{here}.content must be a text.")
        if not content.isascii() and any("\ud800" <= character <= "\udfff" for character in content):
            raise ValueError(f"{here}.content holds half of a surrogate pair (\\ud800 to \\udfff), which is not text.")


def _joined(parts: list[Any], name: str) -> str:
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f'{name}.content: this model reads texts alone: {{"type": "text", "text": ...}}.')
    return "\n".join(part["text"] for part in parts)


def _reads_parts(tokenizer: Any) -> bool:
    """Whether the template knows contents that are lists of parts; one that does not writes them as Python does."""
    parts = [{"type": "text", "text": text} for text in ("first part", "second part")]
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    except Exception:  # whatever it raises: it does not know them
        return False
    return all(part["text"] in text for part in parts) and "'type'" not in text and '"type": "text"' not in text


def _whole(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chat with the parts of each content as one text."""
    listed = [isinstance(message.get("content"), list) for message in chat]
    return [
        {**message, "content": _joined(message["content"], "")} if parts else message
        for message, parts in zip(chat, listed, strict=True)
    ]


def render(request: Chat, tokenizer: Any) -> None:
    """Give the request its texts and tokens. Raises ValueError where the template refuses the messages."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("This model has no chat template: send the prompt itself as inputs.")
    texts = []
    parted = any(isinstance(message.get("content"), list) for chat in request.chats for message in chat)
    chats = request.chats
    if parted and not _reads_parts(tokenizer):
        chats = [_whole(chat) for chat in chats]
    for chat in chats:
        goes_on = chat[-1]["role"] == "assistant"  # the model continues what the last message began
        try:
            text = tokenizer.apply_chat_template(
                chat,
                tools=request.tools,
                tokenize=False,
                add_generation_prompt=not goes_on,
                continue_final_message=goes_on,
            )
        except Exception as error:  # whatever a template raises, it is about these messages
            raise ValueError(f"The model's chat template refuses the messages: {error}") from None
        texts.append(text)
    # The template has written the special tokens.
    encoded = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )
    request.texts = texts
    request.tokens = [list(ids) for ids in encoded["input_ids"]]
