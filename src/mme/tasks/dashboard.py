"""The page for an endpoint on AWS."""

from __future__ import annotations

from invoke import Context

from mme import aws, releases
from mme.errors import UsageError
from mme.settings import Settings
from mme.tasks.command import command, note, print_json, whole_number
from mme.tasks.operate import until_interrupted


@command(
    {
        "port": "the port to listen on, on 127.0.0.1; 0 takes a free one",
        "open": "open it in the browser",
        "json": "print the address as JSON, for a script to read",
    },
    where=("bucket", "prefix", "endpoint", "region", "terraform"),
)
def dashboard(context: Context, settings: Settings, port: str = "0", open: bool = False, json: bool = False) -> None:
    """Serve a page that shows an endpoint, until interrupted: state, models, requests, latency, metrics, log.

    Reads SageMaker, CloudWatch, its logs and the bucket with your own rights, and changes nothing: no model is called.
    It listens on this machine alone, and answers only to the printed address, which ends with a token.

    The bucket is the one that the endpoint reads models from, unless --bucket names another. CloudWatch's metrics are
    read once a minute while a browser looks; AWS bills such calls, at about two cents an hour for each variant.
    """
    from mme.page import browser, server  # which the other tasks need not load
    from mme.page.sources import AWS, Clients, Place, Sources

    number = whole_number("--port", port)
    if number > 65535:
        raise UsageError(f"--port {number} is not a port: they end at 65535.")
    region, endpoint = settings.region, settings.endpoint
    store = releases.Store(settings.bucket, settings.prefix) if settings.knows_bucket else None
    clients = Clients(
        aws.sagemaker_client(region),
        aws.cloudwatch_client(region),
        aws.s3_client(region),
        aws.client("logs", region),
        aws.client("application-autoscaling", region),
    )
    place = Place("aws", clients.sagemaker.meta.region_name, endpoint, store)
    sources = Sources(lambda: clients, place, AWS)
    sources.facts(endpoint)  # whether it exists and may be read

    def ready(url: str) -> None:
        if json:
            print_json({"url": url, "endpoint": endpoint, "region": place.region})
        else:
            print(url, flush=True)
            note(f"It shows endpoint {endpoint}, read only, until Ctrl-C.")
        if open and not browser.show(url):
            note("No browser was found to open it in.")

    with until_interrupted():
        server.serve(sources, number, ready)
