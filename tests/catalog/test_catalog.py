"""The catalogue: what it means, and that every mistake is named with its line and its fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from mme.catalog import reader, spec
from mme.catalog.spec import TASKS
from mme.errors import CatalogError
from mme.packaging.defaults import completed

COMMIT = "86b5e0934494bd15c9632b12f734a8a67f723594"


def load(folder: Path, text: str) -> spec.Catalog:
    path = folder / "models.toml"
    path.write_text(text, encoding="utf-8")
    return reader.load(path)


def table(*lines: str) -> str:
    return "\n".join(["[models.bert]", 'source = "folder:bert"', 'handler = "embedding"', *lines]) + "\n"


def test_the_repositorys_own_catalogue_pins_its_models() -> None:
    models = reader.load(Path(__file__).parents[2] / "models.toml").models
    assert [model.name for model in models] == ["bert", "gpt2"]
    assert all(model.revision and model.handler for model in models)
    assert [model.task for model in models] == ["feature-extraction", "text-generation"]


def test_a_table_with_every_key(tmp_path: Path) -> None:
    text = f'''
[models."team-a/bert"]
source = "hub:google-bert/bert-base-uncased"
revision = "{COMMIT}"
handler = "embedding"
dtype = "bfloat16"
max_error = 1
compression = "fast"
allow_pickle = true
[models."team-a/bert".settings]
pooling = "cls"
'''
    (model,) = load(tmp_path, text).models
    assert (model.name, str(model.source)) == ("team-a/bert", "hub:google-bert/bert-base-uncased")
    assert model.revision == COMMIT
    assert dict(model.settings) == {"pooling": "cls"}
    assert (model.dtype, model.max_error, model.compression) == ("bfloat16", 1.0, "fast")
    assert model.allow_pickle
    assert not model.trust_remote_code


def test_quantize_reaches_the_handler_as_a_setting(tmp_path: Path) -> None:
    (model,) = load(tmp_path, table('quantize = "int8"', "[models.bert.settings]", 'pooling = "cls"')).models
    assert model.quantize == "int8"
    assert dict(model.settings) == {"pooling": "cls", "quantize": "int8"}
    assert model.max_error is None
    (model,) = load(tmp_path, table()).models
    assert model.quantize is None
    assert dict(model.settings) == {}


def test_a_strangers_handler_may_have_a_setting_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "inference.py").write_text("")
    text = table("[models.bert.settings]", "quantize = 4").replace('"embedding"', '"./own"')
    (model,) = load(tmp_path, text).models
    assert (model.quantize, dict(model.settings)) == (None, {"quantize": 4})
    with pytest.raises(CatalogError, match="quantize needs a handler that computes in int8"):
        load(tmp_path, text.replace("[models.bert.settings]", 'quantize = "int8"').replace("quantize = 4", ""))


def test_folders_are_relative_to_the_catalogue_and_kept_private(tmp_path: Path) -> None:
    text = f'[models.a]\nsource = "folder:{tmp_path}/secret/place"\nhandler = "embedding"\n'
    (model,) = load(tmp_path, text).models
    assert str(model.source) == "folder:place"
    (model,) = load(tmp_path, '[models.a]\nsource = "folder:sub/place"\nhandler = "embedding"\n').models
    assert str(model.source) == "folder:sub/place"
    assert model.source.folder == tmp_path / "sub" / "place"


def test_a_handler_beside_the_catalogue_comes_before_one_that_ships(tmp_path: Path) -> None:
    own = tmp_path / "model_code" / "embedding"
    own.mkdir(parents=True)
    (own / "inference.py").write_text("")
    (model,) = load(tmp_path, table()).models
    assert model.handler == own
    (own / "inference.py").unlink()
    (model,) = load(tmp_path, table()).models
    assert model.handler is not None
    assert model.handler != own
    assert (model.handler / "inference.py").is_file()


def test_a_handler_by_path(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "inference.py").write_text("")
    text = '[models.a]\nsource = "folder:x"\nhandler = "./mine"\n'
    (model,) = load(tmp_path, text).models
    assert model.handler is not None
    assert model.handler.resolve() == (tmp_path / "mine").resolve()
    assert model.task is None


def test_no_handler_where_the_stock_container_has_one(tmp_path: Path) -> None:
    (model,) = load(tmp_path, '[models.a]\nsource = "folder:x"\ntask = "text-classification"\n').models
    assert model.handler is None


ALIASES = {
    "ner": "token-classification",
    "sentiment-analysis": "text-classification",
    "vqa": "visual-question-answering",
    "text-to-speech": "text-to-audio",
    "translation_en_to_de": "translation_en_to_de",
}


@pytest.mark.parametrize(("written", "known"), ALIASES.items())
def test_a_task_by_another_of_its_names(tmp_path: Path, written: str, known: str) -> None:
    (model,) = load(tmp_path, f'[models.a]\nsource = "folder:x"\ntask = "{written}"\n').models
    assert model.task == known


def test_sentences_are_compared_by_their_vectors(tmp_path: Path) -> None:
    (model,) = load(tmp_path, '[models.a]\nsource = "folder:x"\ntask = "sentence-similarity"\n').models
    assert model.task == "feature-extraction"
    assert model.handler is not None
    assert model.handler.name == "embedding"


@pytest.mark.parametrize("task", TASKS)
def test_packaging_lays_in_a_handler_for_every_task(tmp_path: Path, task: str) -> None:
    (model,) = load(tmp_path, f'[models.a]\nsource = "folder:x"\ntask = "{task}"\n').models
    complete = completed(model)
    assert complete.handler is not None
    assert complete.handler.name == ("generation" if task == "text-generation" else "pipeline")
    if complete.handler.name == "pipeline":
        assert complete.settings["task"] == task
    assert completed(complete) == complete


def test_selecting(tmp_path: Path) -> None:
    text = "".join(f'[models.{name}]\nsource = "folder:x"\nhandler = "embedding"\n' for name in ("a", "b", "c"))
    loaded = load(tmp_path, text)
    assert [model.name for model in loaded.select()] == ["a", "b", "c"]
    assert [model.name for model in loaded.select(["c", "a", "c"])] == ["a", "c"]
    with pytest.raises(CatalogError, match="no model named 'd'"):
        loaded.select(["d"])


WRONG = {
    "an unknown key, with a guess": (table("sorce = 1"), 4, "Did you mean 'source'"),
    "an unknown top key": ("[model.bert]\n", 1, "Did you mean 'models'"),
    "no models": ("\n\n", 1, "[models.NAME]"),
    "not TOML": ('[models.bert]\nsource = "x\n', 2, "Correct this line"),
    "an unquoted name with a slash": ("\n[models.team-a/bert]\n", 2, '[models."team-a/bert"]'),
    "a dotted name that should be quoted": (
        '[models.team]\nsource="folder:x"\nhandler="embedding"\n[models.team.bert]\nsource="folder:x"\n',
        4,
        '[models."team/bert"]',
    ),
    "a name with capitals": ('[models.MyBERT]\nsource = "folder:x"\n', 1, "'mybert'"),
    "a name that ends in a hyphen": ('[models.bert-]\nsource = "folder:x"\n', 1, "'bert'"),
    "a name too long": (f'[models."{"/".join(["a" * 60] * 4)}"]\nsource = "folder:x"\n', 1, "200 characters"),
    "no source": ('[models.bert]\nhandler = "embedding"\n', 1, 'source = "hub:OWNER/NAME"'),
    "a source without its kind": (
        '[models.bert]\nsource = "google-bert/bert-base-uncased"\n',
        2,
        'Did you mean "hub:google-bert/bert-base-uncased"?',
    ),
    "a package that climbs": ('[models.bert]\nsource = "package:a/../b"\n', 2, "package:NAME"),
    "the Hub without a revision": (
        '[models.bert]\nsource = "hub:a/b"\nhandler = "embedding"\n',
        2,
        "40 hexadecimal digits",
    ),
    "a branch for a revision": (
        '[models.bert]\nsource = "hub:a/b"\nrevision = "main"\nhandler = "embedding"\n',
        3,
        "can move",
    ),
    "a revision of a folder": (table(f'revision = "{COMMIT}"'), 4, "Remove it"),
    "an unknown handler, with a guess": (
        '[models.bert]\nsource = "folder:x"\nhandler = "embeding"\n',
        3,
        "Did you mean 'embedding'?",
    ),
    "a handler path without inference.py": ('[models.bert]\nsource = "folder:x"\nhandler = "./x"\n', 3, "looked for"),
    "neither handler nor task": ('[models.bert]\nsource = "folder:x"\n', 1, "handler ="),
    "a task that is none of transformers": (
        '[models.bert]\nsource = "folder:x"\ntask = "text-to-image"\n',
        3,
        "diffusers",
    ),
    "a task of former days": ('[models.bert]\nsource = "folder:x"\ntask = "conversational"\n', 3, "text-generation"),
    "a task nearly like another": (
        '[models.bert]\nsource = "folder:x"\ntask = "zero-shot-clasification"\n',
        3,
        "Did you mean 'zero-shot-classification'?",
    ),
    "a handler that needs a task": ('[models.bert]\nsource = "folder:x"\nhandler = "pipeline"\n', 3, "Add task"),
    "a handler that is not for the task": (
        '[models.bert]\nsource = "folder:x"\ntask = "sentence-similarity"\nhandler = "pipeline"\n',
        4,
        'handler = "embedding"',
    ),
    "an unknown task": (table('task = "text-generaton"'), 4, "Did you mean 'text-generation'?"),
    "an unknown dtype": (table('dtype = "float8"'), 4, "float32"),
    "an unknown quantize": (table('quantize = "int4"'), 4, "int8"),
    "quantize among the settings": (
        table("[models.bert.settings]", 'quantize = "int8"'),
        5,
        'quantize = "int8" under [models.bert], above [models.bert.settings]',
    ),
    "quantize and a setting against it": (
        table('quantize = "int8"', "[models.bert.settings]", 'dtype = "bfloat16"'),
        6,
        "Remove one of the two",
    ),
    "quantize without a handler": (
        '[models.a]\nsource = "folder:x"\ntask = "fill-mask"\nquantize = "int8"\n',
        4,
        'handler = "embedding"',
    ),
    "a wrong type": (table("allow_pickle = 1"), 4, "It is 1 now"),
    "an error bound of nought": (table("max_error = 0"), 4, "0.01"),
    "settings that are not JSON": (table("[models.bert.settings]", "since = 2020-01-01"), 5, "as a string"),
    "settings with no number": (table("[models.bert.settings]", "x = nan"), 5, "as a string"),
    "settings without a handler": (
        '[models.a]\nsource = "folder:x"\ntask = "fill-mask"\n[models.a.settings]\nx = 1\n',
        4,
        "remove the settings",
    ),
    "a wrong Python": (table('python = "312"'), 4, '"3.12"'),
    "a key after a long string": (table('notes = """', "source = 1", '"""', "unknown = 1"), 7, "Known:"),
}


@pytest.mark.parametrize(("text", "line", "fix"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_named_with_line_and_fix(tmp_path: Path, text: str, line: int, fix: str) -> None:
    with pytest.raises(CatalogError) as caught:
        load(tmp_path, text)
    assert caught.value.message.startswith(f"{tmp_path / 'models.toml'}:{line}: ")
    assert fix in (caught.value.hint or "")


def test_all_mistakes_of_a_catalogue_are_named_in_one_run(tmp_path: Path) -> None:
    text = """
[models.a]
source = "google-bert/bert-base-uncased"
handler = "embeding"
dtype = "float8"
compression = "zip"
python = "312"
max_error = 5

[models.b]
sorce = "folder:x"
allow_pickle = 1

[models.C]
source = "folder:x"

[models.d]
source = "folder:x"
handler = "embedding"

[models.e]
source = "hub:a/b"
revision = "main"
handler = "embedding"
adapter = "hub:c/d"

[models.e.settings]
since = 2020-01-01

[others]
"""
    with pytest.raises(CatalogError) as caught:
        load(tmp_path, text)
    said = str(caught.value)
    path = str(tmp_path / "models.toml")
    lines = [int(line.removeprefix(f"{path}:").split(":")[0]) for line in said.splitlines() if line.startswith(path)]
    assert sorted(lines) == [3, 4, 5, 6, 7, 8, 11, 12, 14, 23, 25, 30]
    for fix in ('"hub:google-bert/bert-base-uncased"', "'embedding'", "'source'", "It is 1 now", "'c'", "can move"):
        assert fix in said
    assert said.endswith(f"12 mistakes in {path}.")


def test_one_table_that_is_wrong_does_not_hide_the_next(tmp_path: Path) -> None:
    text = "".join(f'[models.m{number}]\nsource = "folder:x"\nhandler = "no{number}"\n' for number in range(14))
    with pytest.raises(CatalogError) as caught:
        load(tmp_path, text)
    assert all(f"there is no handler 'no{number}'" in str(caught.value) for number in range(14))


@pytest.mark.parametrize(("name", "guess"), [("distilbrt", "distilbert"), ("team/bert", "team-a/bert"), ("zzz", None)])
def test_a_model_that_is_not_there_gets_the_nearest_name(tmp_path: Path, name: str, guess: str | None) -> None:
    names = ("distilbert", "team-a/bert", "gpt2")
    text = "".join(f'[models."{name}"]\nsource = "folder:x"\nhandler = "embedding"\n' for name in names)
    with pytest.raises(CatalogError) as caught:
        load(tmp_path, text).select([name])
    hint = caught.value.hint or ""
    assert ("Did you mean" in hint) == (guess is not None)
    assert guess is None or f"Did you mean {guess!r}?" in hint
    assert all(name in hint for name in names)


def test_no_catalogue(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no catalogue") as caught:
        reader.load(tmp_path / "models.toml")
    assert "--catalog" in (caught.value.hint or "")


def test_a_catalogue_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CatalogError, match="cannot be read"):
        reader.load(tmp_path / "models.toml")


def test_a_handler_at_the_root_of_a_folder_is_not_left_out_in_silence(tmp_path: Path) -> None:
    """SageMaker's containers run it there; ours for the task would be laid over it."""
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "inference.py").write_text("def model_fn(model_dir): return None\n")
    text = '[models.bert]\nsource = "folder:bert"\ntask = "fill-mask"\n'
    with pytest.raises(CatalogError, match=r"models.toml:2: .* has a handler of its own, inference.py, at its root"):
        load(tmp_path, text)
    assert load(tmp_path, text + 'handler = "pipeline"\n').models[0].handler is not None
    (tmp_path / "bert" / "code").mkdir()
    (tmp_path / "bert" / "inference.py").rename(tmp_path / "bert" / "code" / "inference.py")
    assert load(tmp_path, text).models[0].handler == tmp_path / "bert" / "code"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"config.json": '{"architectures": ["BertForSequenceClassification"]}'},
            'Add task = "text-classification": its config.json says BertForSequenceClassification. Or handler =',
        ),
        ({"config.json": '{"architectures": ["GPT2LMHeadModel"]}'}, 'Add task = "text-generation"'),
        ({"config.json": '{"architectures": ["BertModel"]}', "modules.json": "[]"}, 'Add handler = "embedding": '),
        ({"config.json": '{"architectures": ["BertModel"]}'}, 'Add handler = "embedding", '),
        ({"config.json": '{"architectures": [7]}'}, 'Add handler = "embedding", '),
        ({"config.json": '{"architectures": ["x\\u001b[31m ForMaskedLM"]}'}, 'Add handler = "embedding", '),
        ({"config.json": "[" * 100_000}, 'Add handler = "embedding", '),
        ({}, 'Add handler = "embedding", '),
    ],
)
def test_the_line_that_lacks_is_suggested_by_what_the_folder_holds(
    tmp_path: Path, files: dict[str, str], said: str
) -> None:
    (tmp_path / "x").mkdir()
    for name, text in files.items():
        (tmp_path / "x" / name).write_text(text)
    with pytest.raises(CatalogError) as failed:
        load(tmp_path, '[models.a]\nsource = "folder:x"\n')
    assert said in str(failed.value)
    assert len(str(failed.value)) < 500
