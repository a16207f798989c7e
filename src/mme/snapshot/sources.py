"""Where a model's files are: downloaded from the Hub, in a folder, or in an installed package.

Nothing of a source is loaded or run here, and no torch is needed. What the Hub has is downloaded by its own
client, into its own cache; a package is looked up and never imported.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mme.catalog.spec import Source
from mme.errors import SourceError
from mme.folder import FolderFile, files
from mme.snapshot import extra, portable, sentence, weights
from mme.snapshot.libraries import first_line, missing, quiet

PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
LICENCES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")


@dataclass(frozen=True)
class Located:
    """Where a source's files are on this machine, and what its owner says the licence is."""

    path: Path
    files: tuple[FolderFile, ...]
    licence: str | None = None


def locate(
    source: Source,
    revision: str | None,
    *,
    allow_pickle: bool = False,
    code: bool = False,
    more: Sequence[str] = (),
) -> Located:
    """Find the files of ``source``; from the Hub, download those that are needed (its cache holds them after that).

    ``code`` brings the model's own Python files too, and ``more`` what these patterns match. Raises SourceError.
    """
    if source.kind == "hub":
        path = _download(source.location, revision or "", allow_pickle, code, more)
    elif source.kind == "package":
        path = _package_folder(source.location)
    else:
        folder = source.folder or Path(source.location)
        if not folder.is_dir():
            raise SourceError(
                f"{source}: there is no folder {folder}.", "The path is taken from where the catalogue is."
            )
        path = folder
    licence = _licence(source, path)
    path, contents = sentence.rooted(path, tuple(files(path)))
    return Located(path, contents, licence)


def _download(repository: str, revision: str, allow_pickle: bool, code: bool, more: Sequence[str]) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        raise missing() from None
    what = f"hub:{repository} at {revision[:12]}"
    try:
        with quiet():
            try:
                names = huggingface_hub.HfApi().list_repo_files(repository, revision=revision)
                wanted = sorted({*needed(names, allow_pickle, code), *extra.chosen(more, names)})
            except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError):
                raise
            except Exception as error:
                if not _is_network(error):
                    raise
                return _from_cache(repository, revision, allow_pickle, more)
            return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except GatedRepoError:
        raise SourceError(
            f"{what} is gated: its owner wants to know who uses it.",
            "Ask for access on its page, then set HF_TOKEN to a token of your account.",
        ) from None
    except RevisionNotFoundError:
        raise SourceError(f"{what}: there is no such commit.", "Take the full commit from the model's page.") from None
    except RepositoryNotFoundError:
        raise SourceError(
            f"{what}: there is no such model, or it is private.", "Check the name; for a private one, set HF_TOKEN."
        ) from None
    except LocalEntryNotFoundError as error:
        raise SourceError(
            f"{what}: the Hub cannot be reached, and the cache on this machine does not have it "
            f"({first_line(error.__cause__ or error)}).",
            "Check the network, the proxy settings and HF_ENDPOINT.",
        ) from None
    except HfHubHTTPError as error:
        raise SourceError(f"{what}: the Hub answered {first_line(error)}.", "Try again later.") from None
    except OSError as error:
        raise SourceError(f"{what} cannot be downloaded: {first_line(error)}.", "Check the disk's space.") from None
    except Exception as error:
        if not _is_network(error):
            raise
        raise SourceError(f"{what} cannot be downloaded: {first_line(error)}.", "Check the network.") from None


def _from_cache(repository: str, revision: str, allow_pickle: bool, more: Sequence[str]) -> Path:
    """The commit's files in the cache on this machine, if all are there. A commit never changes, so they need no look
    at the Hub.

    The cache may know of more files than were downloaded, so it is asked for those that ``needed`` would choose.
    """
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    common = [*portable.FILES, sentence.MODULES, sentence.CONFIG, "sentence_*_config.json", "config.json"]
    common += ["generation_config.json", "README.md", "adapter_config.json", *(f"{x}*" for x in LICENCES)]
    common += [f"{portable.TEMPLATES}/*.jinja"]
    common += [f"[0-9]*_*/*.{suffix}" for suffix in ("json", "txt", "model", "safetensors")]
    common += more
    if allow_pickle:
        common.append(f"[0-9]*_*/{sentence.PICKLE}")
    kinds = [["model.safetensors"], [weights.INDEX, "model-*.safetensors"], ["adapter_model.safetensors"]]
    if allow_pickle:
        kinds += [[PICKLES[0]], [PICKLES[1], "pytorch_model-*.bin"]]
    problem: Exception = LocalEntryNotFoundError("it has no weights of this commit")
    for kind in kinds:
        try:
            folder = huggingface_hub.snapshot_download(
                repository, revision=revision, local_files_only=True, allow_patterns=common + kind
            )
        except LocalEntryNotFoundError as error:
            problem = error
            continue
        if (Path(folder) / kind[0]).is_file():
            return Path(folder)
    raise problem


def needed(names: list[str], allow_pickle: bool, code: bool) -> list[str]:
    """Of a repository's files, those that make a snapshot: one format of the weights, never several."""
    top = [name for name in names if "/" not in name]
    chosen = [
        name
        for name in top
        if name in portable.FILES
        or name in ("config.json", "generation_config.json", "README.md")
        or name.upper().startswith(LICENCES)
        or (code and name.endswith(".py"))
    ]
    chosen += [name for name in names if name.startswith(portable.TEMPLATES + "/") and name.endswith(".jinja")]
    chosen += sentence.needed(names, allow_pickle)
    if "model.safetensors" in top:
        chosen.append("model.safetensors")
    elif weights.INDEX in top:
        chosen += [name for name in top if name.startswith("model") and name.endswith(".safetensors")]
        chosen.append(weights.INDEX)
    elif allow_pickle and "pytorch_model.bin" in top:
        chosen.append("pytorch_model.bin")
    elif allow_pickle:
        chosen += [name for name in top if name.startswith("pytorch_model") and name.endswith((".bin", ".json"))]
    chosen += [name for name in top if name.startswith("adapter_") and name.endswith((".json", ".safetensors"))]
    return sorted(set(chosen))


def _package_folder(location: str) -> Path:
    """The folder of a package's model. The package is looked up, never imported."""
    name, _, inside = location.partition("/")
    try:
        module = importlib.util.find_spec(name)  # a top-level name: nothing is executed
    except (ImportError, ValueError):
        module = None
    places = list(module.submodule_search_locations or ()) if module else []
    if not places:
        raise SourceError(
            f"package:{location}: there is no installed package {name!r}.",
            "Install it in this environment, and write its import name: letters, digits and underscores.",
        )
    root = Path(places[0])
    folder = root / inside
    if inside:
        if not folder.is_dir():
            raise SourceError(f"package:{location}: {name} has no folder {inside!r}.", f"It is installed in {root}.")
        return folder
    models = [path.parent for path in sorted(root.rglob("config.json")) if _has_weights(path.parent)]
    if not models:
        raise SourceError(f"package:{location} carries no model.", "Name the folder: package:NAME/FOLDER.")
    if len(models) > 1:
        raise SourceError(
            f"package:{location} carries {len(models)} models.",
            "Name one: " + ", ".join(f"package:{name}/{model.relative_to(root).as_posix()}" for model in models),
        )
    return models[0]


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("model.safetensors", weights.INDEX, *PICKLES))


def _licence(source: Source, path: Path) -> str | None:
    """The licence by the model card's own words, else by the package's."""
    with contextlib.suppress(OSError, UnicodeDecodeError), (path / "README.md").open(encoding="utf-8") as card:
        if card.readline().strip() == "---":
            for line, _ in zip(card, range(500), strict=False):
                if line.strip() == "---":
                    break
                key, _, value = line.partition(":")
                if key == "license" and value.strip():
                    return value.strip().strip("'\"")
    if source.kind == "package":
        name = source.location.partition("/")[0]
        for distribution in importlib.metadata.packages_distributions().get(name, ()):
            fields: Mapping[str, str] = importlib.metadata.metadata(distribution).json  # type: ignore[assignment]
            licence = fields.get("license_expression") or fields.get("license")
            if licence and len(licence) < 100:
                return licence
    return None


def _is_network(error: Exception) -> bool:
    """Whether the network or the server failed, rather than what was asked."""
    family = type(error).__module__.partition(".")[0]
    status = getattr(getattr(error, "response", None), "status_code", 0)
    return (
        family in {"httpx", "httpcore", "requests", "urllib3"}
        or isinstance(error, ConnectionError | TimeoutError)
        or (isinstance(status, int) and status >= 500)
    )
