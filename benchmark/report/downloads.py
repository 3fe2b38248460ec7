"""The tables of a board as files to take away: CSV and Parquet, each with its sha256."""

import gzip
import hashlib
import io
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from benchmark.leaderboards import TABLES
from benchmark.report.boards import Board

PACKED = 1 << 18  # bytes beyond which a CSV is gzipped
LARGEST = 1 << 21  # bytes beyond which a file stays in the repository, that the site is small


@dataclass(frozen=True)
class Download:
    """A file, which a site leaves out where it is too large."""

    name: str
    content: bytes

    @property
    def offered(self) -> bool:
        return len(self.content) <= LARGEST

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def of(board: Board) -> list[tuple[str, list[Download]]]:
    """Of every table of the board, its files: the CSV as it is committed, and the same rows and columns as Parquet. Of
    what is too large, the CSV's name and digest."""
    found = []
    for name in TABLES:
        path = board.folder / f"{name}.csv"
        if path.is_file():
            parquet = Download(f"{name}.parquet", _parquet(board, name))
            found.append((name, [_csv(name, path.read_bytes()), *([parquet] if parquet.offered else [])]))
    return found


def _csv(name: str, text: bytes) -> Download:
    """Gzipped where that makes it small enough."""
    packed = Download(f"{name}.csv.gz", gzip.compress(text, mtime=0)) if len(text) > PACKED else None
    return packed if packed and packed.offered else Download(f"{name}.csv", text)


def _parquet(board: Board, name: str) -> bytes:
    frame, sink = TABLES[name].read(board.folder / f"{name}.csv", older=True), io.BytesIO()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink, compression="zstd")
    return sink.getvalue()
