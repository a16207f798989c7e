"""Write Jane Austen's six novels into one text file: what the model in this folder was trained on.

    apt-get install r-cran-janeaustenr
    python corpus.py austen.txt

The novels come from the Debian package r-cran-janeaustenr (the R package janeaustenr 1.0.0), which keeps them as R
objects. R itself is not needed: the few lines below read the one kind of object that this takes, a vector of strings.
"""

import argparse
import hashlib
import re
import struct
import zlib
from pathlib import Path

DATABASE = Path("/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
SHA256 = "135beeb131d06898ec69b6c5567ced6b74663c4a96555ac21f6d21b527225f7c"  # of the text file, made from version 1.0.0
STRINGS, STRING = 16, 9  # the types of R's serialised objects that occur


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("output", type=Path)
    arguments.add_argument("--database", type=Path, default=DATABASE, help=f"default: {DATABASE}")
    options = arguments.parse_args()
    if not options.database.is_file():
        raise SystemExit(f"{options.database} is missing. Install the Debian package r-cran-janeaustenr.")
    text = "\n\n".join(sorted(paragraphs(lines) for lines in novels(options.database.read_bytes())))
    options.output.write_text(text, encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    print(f"{options.output}: {len(text):,} characters, sha256 {digest}")
    if digest != SHA256:
        print("This is not the text that the model in this folder was trained on; expect other figures.")


def novels(database: bytes) -> list[list[str]]:
    """Every vector of strings in R's database of lazily loaded objects."""
    texts = []
    while database:
        # Each entry is its size, unpacked, in four bytes, and a zlib stream that says itself where it ends.
        reader = zlib.decompressobj()
        entry = reader.decompress(database[4:])
        database = reader.unused_data
        lines = strings(entry)
        if lines is not None:
            texts.append(lines)
    return texts


def strings(entry: bytes) -> list[str] | None:
    """The strings of one serialised object (R's XDR format, version 2 or 3), or None where it is something else."""
    assert entry[:2] == b"X\n", "not R's XDR format"
    version, place = struct.unpack(">i", entry[2:6])[0], 14
    if version == 3:  # the native encoding's name stands next
        place += 4 + struct.unpack(">i", entry[14:18])[0]
    flags, count = struct.unpack(">ii", entry[place : place + 8])
    if flags & 0xFF != STRINGS:
        return None
    place += 8
    lines = []
    for _ in range(count):
        flags, length = struct.unpack(">ii", entry[place : place + 8])
        assert flags & 0xFF == STRING
        lines.append(entry[place + 8 : place + 8 + length].decode())
        place += 8 + length
    return lines


def paragraphs(lines: list[str]) -> str:
    """The novel with each paragraph on one line, an empty line between two, and without the scans' underscores."""
    text = "\n".join(line.strip() for line in lines)
    blocks = [re.sub(r"\s+", " ", block).replace("_", "") for block in re.split(r"\n{2,}", text)]
    return "\n\n".join(block for block in blocks if block)


if __name__ == "__main__":
    main()
