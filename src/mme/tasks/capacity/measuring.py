"""Measures what models need, with the real container."""

from __future__ import annotations

import json
from pathlib import Path

from mme import console
from mme.capacity import measure as measuring
from mme.tasks.capacity.asked import Asked, check_writable, write
from mme.tasks.command import note, print_json


def measure(asked: Asked) -> None:
    paths = [Path(name) for name in asked.archive] or sorted(Path(asked.dist).rglob("*.tar.gz"))
    subjects = [
        measuring.Subject(
            path.relative_to(asked.dist).as_posix() if path.is_relative_to(asked.dist) else path.name, path
        )
        for path in paths
    ]
    if asked.out:
        check_writable(Path(asked.out))
    document = measuring.measure(subjects, asked.container, note=note)
    text = json.dumps(document, indent=2) + "\n"
    if asked.out:
        write(Path(asked.out), text)
        note(f"The needs are in {asked.out}.")
    if asked.json or not asked.out:
        print_json(document)
        return
    rows = [
        (
            name,
            console.size(model["disk_bytes"]),
            console.size(model["private_bytes"] + model["weights_bytes"]),
            f"{model['load_seconds']:.3f} s",
            f"{model['wake_seconds']:.3f} s",
            f"{model['answer_seconds'] * 1000:.1f} ms",
            f"{model['answer_cores']:.2f}",
        )
        for name, model in document["models"].items()
    ]
    print(console.table(("model", "disk", "memory", "load", "wake", "answer", "cores"), rows))
    note(
        f"A load keeps {document['load_cores']:.1f} cores busy, a wake {document['wake_cores']:.1f}. "
        f"That a parked model has {measuring.PARKED_BYTES // 1024} kB is assumed: one is too little to be measured."
    )
