"""Terraform's AWS provider with the few resources that the tests use, out of its 1,500.

Terraform asks a provider for the schemas of all it has, 5 MB, at each command, and reading them takes two thirds of
what a plan takes of a processor. This stands between the two, and leaves out of that one answer the schemas of the
resources and data sources that are not named to it. Everything else goes through as it is, in both directions.

    python few_resources.py ADDRESS SCHEMAS NAME …

ADDRESS is the provider's, as gRPC has it (``unix:/…``). SCHEMAS is a file with the answer for these names, which is
made where it is not there: all processes of one version of the provider can share it. Prints its own address and serves
until standard input closes.

Before each command's work the provider checks a configuration (PrepareProviderConfig), and all of its 1,500 resources
with it. What it says about one configuration is asked for once.

The protocol is tfplugin5, of which one message is read here: what GetSchema answers, GetProviderSchema.Response. Its
fields 2, 3 and 8 are maps from names to the schemas of resources, data sources and ephemeral resources
(https://github.com/hashicorp/terraform/blob/main/docs/plugin-protocol/tfplugin5.proto).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

_SERVICE = "/tfplugin5.Provider/"
_GET_SCHEMA = f"{_SERVICE}GetSchema"
_ASKED_ONCE = f"{_SERVICE}PrepareProviderConfig"
_MAPS_OF_SCHEMAS = (2, 3, 8)
_LENGTH_DELIMITED = 2
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def few(schemas: bytes, names: set[str]) -> bytes:
    """An answer to GetSchema without the resources that are not among ``names``."""
    parts = []
    for field, start, value, end in _fields(schemas):
        if field in _MAPS_OF_SCHEMAS:
            _, _, key, key_end = next(_fields(schemas[value:end]))
            if schemas[value + key : value + key_end].decode() not in names:
                continue
        parts.append(schemas[start:end])
    return b"".join(parts)


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a protobuf message: number, and where the field starts, its value starts and both end."""
    place = 0
    while place < len(message):
        start = place
        tag, place = _varint(message, place)
        if tag & 7 != _LENGTH_DELIMITED:
            raise ValueError(f"a field of wire type {tag & 7}, where all are strings or messages")
        size, place = _varint(message, place)
        yield tag >> 3, start, place, place + size
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place


class _Between(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, provider: Any, schemas: bytes) -> None:
        self._provider = provider
        self._schemas = schemas
        self._prepared: dict[bytes, bytes] = {}

    def service(self, details: Any) -> Any:
        """The handler of a call. Terraform does without what go-plugin offers beside the provider."""
        if not details.method.startswith(_SERVICE):
            return None
        if details.method == _GET_SCHEMA:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: self._schemas)
        forward = self._provider.unary_unary(details.method)

        def answer(request: bytes, context: Any) -> Any:
            try:
                return forward(request)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        def answer_once(request: bytes, context: Any) -> Any:
            if request not in self._prepared:
                self._prepared[request] = answer(request, context)
            return self._prepared[request]

        if details.method == _ASKED_ONCE:
            return grpc.unary_unary_rpc_method_handler(answer_once)
        return grpc.unary_unary_rpc_method_handler(answer)


def _schemas(channel: Any, place: Path, names: set[str]) -> bytes:
    """What is in the file, which appears with all that is in it."""
    if not place.exists():
        schemas = few(channel.unary_unary(_GET_SCHEMA)(b""), names)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
            file.write(schemas)
        Path(file.name).replace(place)
    return place.read_bytes()


def serve(provider: str, place: Path, names: set[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="few-") as folder, grpc.insecure_channel(provider, _UNLIMITED) as channel:
        schemas = _schemas(channel, place, names)
        server = grpc.server(ThreadPoolExecutor(32), [_Between(channel, schemas)], options=_UNLIMITED)
        socket = Path(folder) / "socket"
        server.add_insecure_port(f"unix:{socket}")
        server.start()
        print(socket, flush=True)
        sys.stdin.read()
        server.stop(None)


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), set(sys.argv[3:]))
