"""What disks, crashes and people do to files: flipped bits, torn writes, cuts, deletions. On purpose, by dice."""

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

PAGE = 4096
KINDS = {"bit flipped": 800, "torn write": 180, "file cut": 10, "file deleted": 10}
"""How often each, of a thousand: cuts and deletions take hundreds of blocks at once."""


@dataclass
class Damage:
    """Done to files below `folder` whose names end in `.kv`. `done` counts by kind."""

    folder: Path
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter)
    _files: list[Path] = field(default_factory=list)
    """Those whose turn is still to come: then it is looked again for what there is."""

    def strike(self, kind: str | None = None) -> tuple[Path, int, int] | None:
        """Once, somewhere: the file, and the first byte and the one after the last that may have changed. None: there
        is no file, or it went away meanwhile."""
        kind = kind or self.chance.choices(list(KINDS), list(KINDS.values()))[0]
        if not self._files:
            self._files = list(self.folder.rglob("*.kv"))
            self.chance.shuffle(self._files)
        if not self._files:
            return None
        file = self._files.pop()
        try:
            begin, end = getattr(self, f"_{kind.replace(' ', '_')}")(file, file.stat().st_size)
        except FileNotFoundError:
            return None
        self.done[kind] += 1
        return file, begin, end

    def _bit_flipped(self, file: Path, size: int) -> tuple[int, int]:
        offset = self.chance.randrange(max(1, size))
        with file.open("r+b") as opened:
            opened.seek(offset)
            byte = opened.read(1) or b"\0"
            opened.seek(offset)
            if size:
                opened.write(bytes([byte[0] ^ 1 << self.chance.randrange(8)]))
        return offset, offset + 1

    def _torn_write(self, file: Path, size: int) -> tuple[int, int]:
        """Part of a page is of another time: zeros, or something else."""
        offset = self.chance.randrange(max(1, size - PAGE))
        length = min(self.chance.choice([64, 512, PAGE]), size - offset)
        with file.open("r+b") as opened:
            opened.seek(offset)
            opened.write(bytes(length) if self.chance.random() < 0.5 else self.chance.randbytes(length))
        return offset, offset + length

    def _file_cut(self, file: Path, size: int) -> tuple[int, int]:
        offset = self.chance.randrange(size + 1)
        with file.open("r+b") as opened:
            opened.truncate(offset)
        return offset, size

    def _file_deleted(self, file: Path, size: int) -> tuple[int, int]:
        file.unlink()
        return 0, size
