"""Archives: the same content gives the same name and bytes, and a final name means a whole file."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import signal
import tarfile
import time
from pathlib import Path

import pytest
import tiny_models

from mme.archive import plan, read, untar, write
from mme.catalog.spec import ModelSpec, Source
from mme.errors import ArchiveError, CatalogError, HandlerError, SourceError
from mme.packaging import records


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A snapshot in appearance: archives do not look into weights."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 9000)
    (folder / "vocab.txt").write_text("[PAD]\n")
    return folder


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    return ModelSpec(
        name="team-a/bert",
        source=Source("hub", "google-bert/bert-base-uncased"),
        revision="8" * 40,
        handler=tiny_models.handler(tmp_path / "handler"),
        settings={"pooling": "mean", "näme": 1},
    )


def names(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_what_is_inside_and_in_what_order(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    made = write.build(spec, snapshot, tmp_path / "dist")
    assert made.path == tmp_path / "dist" / made.target
    assert made.target == f"team-a/bert-{made.digest[:12]}.tar.gz"
    assert made.size == made.path.stat().st_size
    assert names(made.path) == [
        "code/inference.py",
        "code/sample.json",
        "code/settings.json",
        "config.json",
        "model.safetensors",
        "vocab.txt",
        "mme-manifest.json",
    ]
    untar.extract(made.path, tmp_path / "out")
    assert json.loads((tmp_path / "out/code/settings.json").read_text("utf-8")) == {"pooling": "mean", "näme": 1}
    assert (tmp_path / "out/model.safetensors").read_bytes() == (snapshot / "model.safetensors").read_bytes()


def test_nothing_of_the_machine_gets_in(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    made = write.build(spec, snapshot, tmp_path / "dist")
    assert made.path
    with tarfile.open(made.path) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == 0o644
            assert member.isreg()
    assert str(tmp_path).encode() not in gzip.decompress(made.path.read_bytes())


def test_the_same_content_gives_the_same_bytes(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    """Whatever the times, the modes, the umask, the order of writing, and the place."""
    first = write.build(spec, snapshot, tmp_path / "dist")
    other = tmp_path / "elsewhere" / "another name"
    other.mkdir(parents=True)
    for path in sorted(snapshot.iterdir(), reverse=True):
        (other / path.name).write_bytes(path.read_bytes())
        (other / path.name).chmod(0o600)
        os.utime(other / path.name, (1, 1))
    before = os.umask(0o077)
    try:
        second = write.build(spec, other, tmp_path / "dist2")
    finally:
        os.umask(before)
    assert first.path
    assert second.path
    assert second.digest == first.digest
    assert second.path.read_bytes() == first.path.read_bytes()


@pytest.mark.parametrize("change", ["content", "name", "settings", "handler"])
def test_other_content_gives_another_digest(snapshot: Path, spec: ModelSpec, tmp_path: Path, change: str) -> None:
    before = plan.plan(spec, snapshot).digest
    if change == "content":
        (snapshot / "vocab.txt").write_text("[PAD]\r")
    elif change == "name":
        (snapshot / "vocab.txt").rename(snapshot / "vocab.text")
    elif change == "settings":
        spec = ModelSpec(spec.name, spec.source, handler=spec.handler, settings={"pooling": "cls"})
    else:
        assert spec.handler
        (spec.handler / "more.py").write_text("x = 1\n")
    assert plan.plan(spec, snapshot).digest != before


def test_compression_and_origin_do_not_change_the_digest(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    digests = {
        write.build(spec, snapshot, tmp_path / how, compression=how, facts={"licence": how}).digest
        for how in ("auto", "stored", "fast", "small")
    }
    assert len(digests) == 1


def test_the_digest_is_that_of_the_files_and_can_be_found_by_hand(
    snapshot: Path, spec: ModelSpec, tmp_path: Path
) -> None:
    made = write.build(spec, snapshot, tmp_path / "dist")
    untar.extract(made.path or Path(), tmp_path / "out")
    lines = []
    for path in sorted((p for p in (tmp_path / "out").rglob("*") if p.is_file()), key=lambda p: str(p).encode()):
        name = path.relative_to(tmp_path / "out").as_posix()
        if name != "mme-manifest.json":
            lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_size} {name}\n")
    assert hashlib.sha256(("mme archive 1\n" + "".join(lines)).encode()).hexdigest() == made.digest


def test_auto_compresses_only_what_is_large_and_shrinks(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    random, regular, small = snapshot / "model.safetensors", snapshot / "other.safetensors", snapshot / "tokenizer.json"
    random.write_bytes(os.urandom(17 << 20))
    regular.write_bytes(b"0123456789abcdef" * (17 << 16))
    small.write_bytes(b"0123456789abcdef" * (2 << 16))
    size = write.build(spec, snapshot, tmp_path / "dist").size
    assert 19 << 20 < size < (19 << 20) + (1 << 19)


def test_stray_files_stay_out(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    assert spec.handler
    before = plan.plan(spec, snapshot).digest
    for folder in (snapshot, spec.handler):
        for name in (".ipynb_checkpoints/inference-checkpoint.py", ".git/config", "__pycache__/inference.pyc"):
            (folder / name).parent.mkdir()
            (folder / name).write_text("x")
        for name in (".DS_Store", ".env", "inference.py~", "old.pyc", "._config.json"):
            (folder / name).write_text("x")
    assert plan.plan(spec, snapshot).digest == before


def test_links_are_followed_inside_and_refused_outside(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    (snapshot / "again.txt").symlink_to("vocab.txt")
    made = write.build(spec, snapshot, tmp_path / "dist")
    untar.extract(made.path or Path(), tmp_path / "out")
    assert not (tmp_path / "out/again.txt").is_symlink()
    assert (tmp_path / "out/again.txt").read_text() == "[PAD]\n"
    (snapshot / "secret").symlink_to("/etc/passwd")
    with pytest.raises(SourceError, match="leads out of the folder"):
        write.build(spec, snapshot, tmp_path / "dist")
    (snapshot / "secret").unlink()
    (snapshot / "loop").symlink_to(".")
    with pytest.raises(SourceError, match="itself inside of"):
        write.build(spec, snapshot, tmp_path / "dist")


def test_a_pipe_is_refused(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    os.mkfifo(snapshot / "pipe")
    with pytest.raises(SourceError, match="neither a file nor a folder"):
        write.build(spec, snapshot, tmp_path / "dist")


def test_a_snapshot_with_a_code_folder_of_its_own_is_refused(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    (snapshot / "code").mkdir()
    (snapshot / "code" / "inference.py").write_text("")
    with pytest.raises(ArchiveError, match="code folder"):
        write.build(spec, snapshot, tmp_path / "dist")


def test_without_a_handler_there_is_no_code(snapshot: Path, tmp_path: Path) -> None:
    spec = ModelSpec("bert", Source("folder", "x"), task="fill-mask")
    made = write.build(spec, snapshot, tmp_path / "dist")
    assert [file.path for file in made.files] == ["config.json", "model.safetensors", "vocab.txt"]
    assert "handler" not in made.manifest


# --- the manifest --------------------------------------------------------------------------------------------


def test_the_manifest_tells_where_it_comes_from(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    made = write.build(spec, snapshot, tmp_path / "dist", facts={"licence": "apache-2.0"})
    manifest = read.read_manifest(made.path or Path())
    assert manifest == made.manifest
    assert manifest["source"] == "hub:google-bert/bert-base-uncased"
    assert manifest["revision"] == "8" * 40
    assert manifest["licence"] == "apache-2.0"
    assert manifest["handler"]["name"] == "handler"
    assert {file["path"] for file in manifest["files"]} == {file.path for file in made.files}


@pytest.mark.parametrize("compression", ["stored", "fast", "small"])
def test_the_manifest_is_read_from_the_end_alone(
    snapshot: Path, spec: ModelSpec, tmp_path: Path, compression: str
) -> None:
    made = write.build(spec, snapshot, tmp_path / "dist", compression=compression)
    assert made.path
    data = made.path.read_bytes()
    assert read.manifest_from_tail(data[-8192:]) == made.manifest
    assert read.manifest_from_tail(data) == made.manifest
    assert read.manifest_from_tail(data[-600:]) is None


def test_a_long_manifest_is_found_by_reading_on(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    for number in range(2500):
        (snapshot / f"{number:04}.txt").write_text("x")
    made = write.build(spec, snapshot, tmp_path / "dist")
    assert made.path
    assert read.manifest_from_tail(made.path.read_bytes()[-read.TAIL :]) is None
    assert read.open_archive(made.path) == made


def test_an_archive_of_somebody_else_has_no_manifest(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("config.json"), io.BytesIO())
    with pytest.raises(ArchiveError, match="mme did not make it"):
        read.read_manifest(tmp_path / "x.tar.gz")
    assert [file.path for file in read.contents(tmp_path / "x.tar.gz")] == ["config.json"]


def test_open_and_check(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    made = write.build(spec, snapshot, tmp_path / "dist")
    assert made.path
    assert read.open_archive(made.path) == made
    assert read.check(made.path) == made


def test_check_notices_a_changed_file(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    """Somebody packs other weights under the old manifest, with a right gzip checksum."""
    made = write.build(spec, snapshot, tmp_path / "dist")
    assert made.path
    content = gzip.decompress(made.path.read_bytes())
    made.path.write_bytes(gzip.compress(content.replace(b"[PAD]", b"[BAD]"), 0))
    with pytest.raises(ArchiveError, match="does not hold what its manifest says"):
        read.check(made.path)


def test_an_archive_under_another_name_is_noticed(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    made = write.build(spec, snapshot, tmp_path / "dist")
    other = (made.path or Path()).rename(tmp_path / "other-0123456789ab.tar.gz")
    with pytest.raises(ArchiveError, match="under another name"):
        read.open_archive(other)


# --- streaming -----------------------------------------------------------------------------------------------


def test_a_stream_is_the_same_as_a_file(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    made = write.build(spec, snapshot, tmp_path / "dist")
    planned = plan.plan(spec, snapshot)
    assert planned.target == made.target
    streamed = io.BytesIO()
    archive_ = write.stream(planned, streamed.write)
    assert made.path
    assert streamed.getvalue() == made.path.read_bytes()
    assert (archive_.digest, archive_.size, archive_.files) == (made.digest, made.size, made.files)
    assert archive_.path is None


def test_a_stream_whose_files_change_meanwhile_is_refused(snapshot: Path, spec: ModelSpec) -> None:
    planned = plan.plan(spec, snapshot)
    data = bytearray((snapshot / "model.safetensors").read_bytes())
    data[1000] ^= 1
    (snapshot / "model.safetensors").write_bytes(data)
    with pytest.raises(ArchiveError, match="changed while it was packed"):
        write.stream(planned, lambda _: None)


def test_digests_known_beforehand_are_not_believed_blindly(snapshot: Path, spec: ModelSpec) -> None:
    planned = plan.plan(spec, snapshot, known={"vocab.txt": "0" * 64})
    with pytest.raises(ArchiveError, match=r"vocab\.txt .* changed"):
        write.stream(planned, lambda _: None)


def test_progress_counts_every_byte_once(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    counts: list[int] = []
    made = write.build(spec, snapshot, tmp_path / "dist", progress=counts.append)
    assert sum(counts) == sum(file.size for file in made.files)


# --- what is noted -------------------------------------------------------------------------------------------


def test_built_finds_what_was_noted(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    out = tmp_path / "dist"
    assert records.built(out, spec.name) is None
    made = write.build(spec, snapshot, out)
    assert records.built(out, spec.name) is None
    records.note(out, made)
    assert records.built(out, spec.name) == made
    assert records.latest(out, spec.name) == records.Latest(spec.name, made.target, made.digest, made.size)
    assert made.path
    made.path.write_bytes(made.path.read_bytes() + b"x")
    with pytest.raises(ArchiveError, match="is not the archive that was built"):
        records.built(out, spec.name)
    made.path.unlink()
    assert records.built(out, spec.name) is None
    assert records.latest(out, spec.name) is None
    made.path.mkdir()
    assert records.latest(out, spec.name) is None


# --- what goes wrong -----------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing(
    snapshot: Path, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = os.writev, 0

    def filling(descriptor: int, parts: list[memoryview]) -> int:
        nonlocal written
        if written > 1 << 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = real(descriptor, parts)
        written += done
        return done

    monkeypatch.setattr(os, "writev", filling)
    with pytest.raises(ArchiveError, match=r"disk .* is full"):
        write.build(spec, snapshot, tmp_path / "dist", compression="stored")
    assert list((tmp_path / "dist/team-a").iterdir()) == []


def test_too_little_space_is_said_before_the_work(
    snapshot: Path, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(ArchiveError, match="0 MB free"):
        write.build(spec, snapshot, tmp_path / "dist")


def _build_forever(spec: ModelSpec, snapshot: Path, out: Path, ready: Path) -> None:
    def pause(_: int) -> None:
        ready.touch()
        time.sleep(600)

    write.build(spec, snapshot, out, progress=pause)


def test_killed_in_the_middle_leaves_no_final_name_and_the_next_run_cleans_up(
    snapshot: Path, spec: ModelSpec, tmp_path: Path
) -> None:
    folder, ready = tmp_path / "dist" / "team-a", tmp_path / "ready"
    child = multiprocessing.get_context("fork").Process(
        target=_build_forever, args=(spec, snapshot, tmp_path / "dist", ready)
    )
    child.start()
    assert child.pid
    while not ready.exists():
        assert child.is_alive()
        time.sleep(0.01)
    write.clean(folder)
    assert len(list(folder.iterdir())) == 1, "what somebody is writing is not stale"
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert [path.suffix for path in folder.iterdir()] == [".partial"]
    made = write.build(spec, snapshot, tmp_path / "dist")
    assert list(folder.iterdir()) == [made.path]


def test_an_out_that_cannot_be_written(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "dist").write_text("a file")
    with pytest.raises(ArchiveError, match="dist"):
        write.build(spec, snapshot, tmp_path / "dist")


def test_a_file_that_goes_away(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    planned = plan.plan(spec, snapshot)
    (snapshot / "vocab.txt").unlink()
    with pytest.raises(ArchiveError, match=r"vocab\.txt .* cannot be read: No such file"):
        write.stream(planned, lambda _: None)


def test_a_folder_that_cannot_be_read(
    snapshot: Path, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(SourceError, match="Permission denied"):
        plan.plan(spec, snapshot)


def test_members_beyond_8_gib_are_written_as_such() -> None:
    """The plain header has room for 8 GiB; beyond, the size is in an extended one, which readers know."""
    from mme.archive.untar import members

    size = 9 << 30
    header = write._header("model.safetensors", size)
    member = next(members(io.BytesIO(header)))
    assert (member.path, member.size) == ("model.safetensors", size)
    with tarfile.open(fileobj=io.BytesIO(header)) as tar:
        info = tar.next()
        assert info is not None
        assert (info.name, info.size) == ("model.safetensors", size)


def test_an_unknown_compression(snapshot: Path, spec: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no compression 'best'"):
        write.build(spec, snapshot, tmp_path / "dist", compression="best")


def test_a_folder_that_is_no_model(spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArchiveError, match=r"no config\.json"):
        plan.plan(spec, tmp_path / "empty")


WRONG_HANDLERS = {
    "a syntax error": ("def model_fn(model_dir)\n    pass\n", r"inference\.py:1: this is not valid Python"),
    "syntax of a later Python": ("def model_fn(d): return 1\ntype X = int\n", r":2: this is not valid Python"),
    "nothing that a container calls": ("def predict(x): return x\n", "defines none of model_fn"),
    "transform_fn and another": (
        "def transform_fn(m, d, c, a): return d\ndef output_fn(p, a): return p\n",
        "defines transform_fn and also output_fn",
    ),
    "too few arguments": (
        "def model_fn(d): return 1\n\ndef predict_fn(data): return 1\n",
        ":3: predict_fn is called with 2",
    ),
    "too many arguments": ("def model_fn(a, b, c): return 1\n", "model_fn is called with 1 argument"),
    "an async function": ("async def model_fn(d): return 1\n", "async"),
    "a null byte": ("def model_fn(d): return 1\n\0", "is not"),
}


@pytest.mark.parametrize(("code", "message"), WRONG_HANDLERS.values(), ids=WRONG_HANDLERS.keys())
def test_a_handler_that_no_container_could_use(snapshot: Path, tmp_path: Path, code: str, message: str) -> None:
    handler = tiny_models.handler(tmp_path / "wrong", code)
    with pytest.raises(HandlerError, match=message):
        plan.plan(ModelSpec("bert", Source("folder", "x"), handler=handler), snapshot)


GOOD_HANDLERS = {
    "with context": "def model_fn(d, context): return 1\ndef predict_fn(data, model, context=None): return 1\n",
    "with anything": "def model_fn(*a): return 1\ndef predict_fn(*args, **more): return 1\n",
    "imported": "from other import predict_fn\n",
    "assigned": "transform_fn = lambda *a: a\n",
    "batched": "def model_fn(d): return 1\ndef batch_fn(inputs, model): return inputs\n",
    "a star import": "from impl import *\n",
    "under if": "import os\nif os.sep:\n    def model_fn(d): return 1\nelse:\n    def model_fn(d): return 2\n",
    "under try": "try:\n    import x\nexcept ImportError:\n    def predict_fn(data, model): return data\n",
    "annotated": "from typing import Callable\nmodel_fn: Callable = lambda d: 1\n",
    "in a tuple": "model_fn, predict_fn = (lambda d: 1), (lambda data, model: 1)\n",
    "by globals": "globals()['model_fn'] = lambda d: 1\n",
    "by a decorator": "import functools\n@functools.partial(lambda f: lambda d: f)\ndef model_fn(): return 1\n",
    "one that is bound twice": "def predict_fn(): return 1\npredict_fn = lambda data, model: data\n",
    "transform_fn, and another as None": "def transform_fn(m, d, c, a): return d\npredict_fn = None\n",
}


@pytest.mark.parametrize("code", GOOD_HANDLERS.values(), ids=GOOD_HANDLERS.keys())
def test_a_handler_that_containers_take(snapshot: Path, tmp_path: Path, code: str) -> None:
    handler = tiny_models.handler(tmp_path / "good", code)
    assert plan.plan(ModelSpec("bert", Source("folder", "x"), handler=handler), snapshot).digest


def test_a_handler_with_settings_of_its_own(snapshot: Path, spec: ModelSpec) -> None:
    assert spec.handler
    (spec.handler / "settings.json").write_text("{}")
    with pytest.raises(HandlerError, match="overwritten"):
        plan.plan(spec, snapshot)
