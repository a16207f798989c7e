"""Chats in the generation handler: the model's own template, and the errors of a wrong chat."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_models
from handler_tools import linked

TEMPLATE = (
    "{% if tools %}[{% for tool in tools %}{{ tool.function.name }}{% endfor %}]{% endif %}"
    "{% for message in messages %}"
    "{% if message.role not in ('system', 'user', 'assistant') %}{{ raise_exception('no such role') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}{% if not loop.last or message.role != 'assistant' %}</s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who is it?"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "", "parameters": {}}}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoTokenizer

    folder = tiny_models.gpt2(tmp_path_factory.mktemp("chat") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(generation: ModuleType, folder: Path) -> Any:
    return generation.model_fn(str(folder))


def ask(generation: ModuleType, model: Any, **body: Any) -> Any:
    body.setdefault("parameters", {"max_new_tokens": 8})
    return generation.predict_fn(generation.input_fn(json.dumps(body), "application/json"), model)


def test_a_chat_is_the_prompt_that_its_template_makes(generation: ModuleType, model: Any) -> None:
    prompt = "<system>Be brief.</s><user>Who is it?</s><assistant>"
    right = ask(generation, model, inputs=prompt)
    assert ask(generation, model, messages=MESSAGES) == right
    assert ask(generation, model, inputs=MESSAGES) == right
    parts = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, MESSAGES[1]]
    assert ask(generation, model, messages=parts) == right
    full = ask(generation, model, messages=MESSAGES, parameters={"max_new_tokens": 8, "return_full_text": True})
    assert full[0]["generated_text"] == prompt + right[0]["generated_text"]


def test_tools_reach_the_template(generation: ModuleType, model: Any) -> None:
    right = ask(generation, model, inputs="[weather]<user>Rain?</s><assistant>")
    assert ask(generation, model, messages=[{"role": "user", "content": "Rain?"}], tools=TOOLS) == right


def test_what_the_assistant_began_is_continued(generation: ModuleType, model: Any) -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "It is"}]
    right = ask(generation, model, inputs="<system>Be brief.</s><user>Who is it?</s><assistant>It is")
    assert ask(generation, model, messages=begun) == right


def test_chats_in_company(generation: ModuleType, model: Any) -> None:
    other = [{"role": "user", "content": "the house"}]
    both = ask(generation, model, inputs=[MESSAGES, other])
    assert both == [ask(generation, model, messages=MESSAGES), ask(generation, model, messages=other)]
    requests = [
        generation.input_fn(json.dumps({"messages": chat, "parameters": {"max_new_tokens": 8}}), "application/json")
        for chat in (MESSAGES, other)
    ]
    assert generation.batch_fn(requests, model) == both
    steps, done = generation.decoder_fn(model), {}
    for key, chat in enumerate((MESSAGES, other)):
        body = json.dumps({"messages": chat, "parameters": {"max_new_tokens": 8}})
        steps.add(key, generation.input_fn(body, "application/json"))
    while len(steps):
        done.update(steps.step())
    assert [done[0], done[1]] == both


WRONG = {
    "no messages": ({"messages": []}, "must be a list of messages"),
    "a message without a role": ({"messages": [{"content": "a"}]}, r"messages\[0\] must be"),
    "content that is a number": ({"messages": [{"role": "user", "content": 3}]}, "content must be a text"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "reads texts alone"),
    "what the template refuses": (
        {"messages": [{"role": "ghost", "content": "a"}]},
        "refuses the messages: no such role",
    ),
    "both": ({"messages": MESSAGES, "inputs": "a"}, "not both"),
    "tools that are none": ({"messages": MESSAGES, "tools": ["weather"]}, '"tools" must be a list of objects'),
    "an unknown field": ({"messages": MESSAGES, "stream": True}, "Unknown field 'stream'"),
    "an unknown parameter": ({"messages": MESSAGES, "parameters": {"top_q": 1}}, "Unknown parameter 'top_q'"),
}


@pytest.mark.parametrize(("body", "reason"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_chat_is_named(generation: ModuleType, model: Any, body: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ask(generation, model, **body)


def test_a_model_without_a_template_says_so(generation: ModuleType, generator: Any) -> None:
    with pytest.raises(ValueError, match="has no chat template"):
        ask(generation, generator, messages=MESSAGES)


def test_a_text_that_speaks_of_roles_is_a_text(generation: ModuleType, model: Any) -> None:
    assert ask(generation, model, inputs='{"role": "user"}') == ask(generation, model, inputs=['{"role": "user"}'])[0]


def test_settings_do_not_change_what_a_chat_is(generation: ModuleType, folder: Path, tmp_path: Path) -> None:
    model = generation.model_fn(str(linked(folder, tmp_path / "m", max_new_tokens=3)))
    assert ask(generation, model, messages=MESSAGES, parameters={})[0]["generated_tokens"] <= 3


PARTED = (
    "{% for message in messages %}<{{ message.role }}>{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text }};{% endfor %}{% endif %}{% endfor %}"
)
PARTS = [{"type": "text", "text": "Who"}, {"type": "text", "text": "is it?"}]


@pytest.mark.parametrize(("template", "prompt"), [(PARTED, "<user>Who;is it?;"), (TEMPLATE, "<user>Who\nis it?</s>")])
def test_parts_are_the_templates_to_put_together(
    generation: ModuleType, folder: Path, tmp_path: Path, template: str, prompt: str
) -> None:
    """Where it knows none, they are lines of one text."""
    without = ("chat_template.jinja", "tokenizer_config.json")
    made = linked(folder, tmp_path / "m", without)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (made / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    model = generation.model_fn(str(made))
    parameters = {"max_new_tokens": 2, "return_full_text": True}
    (answer,) = ask(generation, model, messages=[{"role": "user", "content": PARTS}], parameters=parameters)
    assert answer["generated_text"].startswith(prompt)
    both = [[{"role": "user", "content": PARTS}], [{"role": "user", "content": "Rain."}]]
    answers = ask(generation, model, messages=both, parameters=parameters)
    assert answers[0][0]["generated_text"].startswith(prompt)
    assert answers[1][0]["generated_text"].startswith("<user>Rain.")
