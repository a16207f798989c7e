"""The task watch: a handler on the local endpoint as it is edited."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from invoke import Context

from mme import aws, channels, releases
from mme.errors import UsageError
from mme.operate import facts as endpoint_facts
from mme.settings import Settings
from mme.tasks import screen
from mme.tasks.command import CATALOG_HELP, command, load_catalog, note, print_json_line, who
from mme.tasks.operate import ALL, store_of, until_interrupted

if TYPE_CHECKING:
    from mme.catalog.spec import ModelSpec
    from mme.operate import watch as endpoint_watch


@command(
    {
        "model": "the model of the catalogue whose handler is edited",
        "catalog": CATALOG_HELP,
        "out": "the folder for the model's archive",
        "channel": "the stage whose channel follows: dev for bert@dev",
        "author": "who; the history shows it; else MME_AUTHOR, else this machine's user",
        "json": "print a line of JSON for each version and each problem",
    },
    where=ALL,
)
def watch(
    context: Context,
    settings: Settings,
    model: str | None = None,
    catalog: str = "models.toml",
    out: str = "dist",
    channel: str = "dev",
    author: str | None = None,
    json: bool = False,
) -> None:
    """Edit a handler, and each save answers on the local endpoint.

    A save becomes a version, is asked its sample, and is then what MODEL@dev (--channel) means. The version before goes
    on answering until the new one has answered. An error in a save is shown with file and line. Works with the local
    AWS alone (invoke local); ends with Ctrl-C.
    """
    from mme.operate import watch as endpoint_watch  # slow to import, and few tasks need it
    from mme.packaging.defaults import completed

    if not model:
        raise UsageError("Which model?", "Give --model, as in --model bert.")
    channels.model_of(f"{model}@{channel}")
    region = settings.region
    s3, runtime = aws.s3_client(region), aws.runtime_client(region)
    if not (aws.is_local(s3) and aws.is_local(runtime)):
        raise UsageError(
            "invoke watch publishes whatever is saved, so it works with the local AWS alone, not with "
            f"{s3.meta.endpoint_url}.",
            "Start it (invoke local), and paste the lines that it prints into this shell.",
        )
    spec = completed(load_catalog(context, catalog).select([model])[0])
    handler = spec.handler
    if handler is None:
        raise UsageError(f"{model} has no handler to edit.", f"Name one in {catalog}: handler = ….")
    facts = endpoint_facts.read(aws.sagemaker_client(region), settings.endpoint)
    place = endpoint_watch.Place(
        runtime, aws.client("logs", region), s3, store_of(settings, facts), facts.name, channel, who(author)
    )
    releases.check_bucket(s3, place.store)
    with until_interrupted():
        while _watched(spec, handler, Path(out), place, json):
            pass


def _watched(spec: ModelSpec, handler: Path, out: Path, place: endpoint_watch.Place, json: bool) -> bool:
    """Watch until the handler's requirements change; True then, since the libraries have to be fetched again."""
    from mme.archive.handler import REQUIREMENTS
    from mme.operate import watch as endpoint_watch
    from mme.packaging.job import PackagingJob
    from mme.packaging.workspace import workspace

    with workspace(out) as work:
        archive = PackagingJob(spec, out).package().archive
        base = endpoint_watch.prepare(archive, spec, work / "base")
        before = endpoint_watch.stamps(handler)
        made = endpoint_watch.Made()
        _tell(endpoint_watch.renew(base, place, made), spec.name, place.channel, json)
        note(f"Watching {handler} ({len(before)} files). Ctrl-C ends it.")
        for now in endpoint_watch.changes(handler, before):
            if now is None:
                continue
            paths = endpoint_watch.changed(before, now)
            before = now
            if any(path.name == REQUIREMENTS for path in paths):
                note(f"{REQUIREMENTS} has changed: packaging anew.")
                return True
            saved = endpoint_watch.newest(now, paths)
            _tell(endpoint_watch.renew(base, place, made, saved), spec.name, place.channel, json)
    return False


def _tell(result: endpoint_watch.Answered | endpoint_watch.Problem, model: str, channel: str, json: bool) -> None:
    if json:
        print_json_line(screen.watched_json(result, f"{model}@{channel}"))
    else:
        print(screen.watched(result, f"{model}@{channel}"), flush=True)
