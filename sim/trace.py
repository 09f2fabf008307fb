"""Trace: typed records of all that happens in a run -> one tidy DataFrame per kind.

Kinds and what one row is:

- `metric`: an evaluation of the consensus model (time, step, tokens, nbytes, loss, ...);
- `round`: the coordinator opened a round; `session`: a node left, joined or was admitted;
- `compute`: a piece of work on a group; `collective`, `transfer`: bytes in motion.

While a run lasts every record is one line of JSON in `events.jsonl`, so that a run that was killed
can be read; at the end each kind becomes one Parquet file, written beside its name and renamed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

MAX_TABLE_BYTES = 4 << 30


class Trace:
    """All records of a run, in the order in which they were made.

    Args:
        events: file for the JSON lines, or None to keep the records in memory only.
        details: keep fields that are tuples too: who was in a group, and when each was done.

    >>> trace = Trace()
    >>> trace.record("metric", time=0.0, loss=1.5)
    >>> trace["metric"]["loss"].tolist()
    [1.5]
    """

    def __init__(self, events: str | Path | None = None, details: bool = False) -> None:
        self._details = details
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._file: IO[str] | None = None
        if events is not None:
            Path(events).parent.mkdir(parents=True, exist_ok=True)
            self._file = open(events, "w", encoding="utf-8")  # noqa: SIM115 (closed by `close`)

    def record(self, kind: str, **fields: Any) -> None:
        """Append one row to a kind; fields are numbers, strings, booleans, None, or details."""
        if not self._details:
            fields = {key: v for key, v in fields.items() if not isinstance(v, tuple)}
        self._rows.setdefault(kind, []).append(fields)
        if self._file is not None:
            self._file.write(json.dumps({"kind": kind, **fields}, default=float) + "\n")
            if kind == "metric":  # rare, and what somebody watching the run wants to see
                self._file.flush()

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """The records of a kind as they were made; empty if there are none."""
        return self._rows.get(kind, [])

    @property
    def kinds(self) -> list[str]:
        """The kinds that have records."""
        return list(self._rows)

    def __getitem__(self, kind: str) -> pd.DataFrame:
        """One row per record; a column per field, NaN where a record lacks it."""
        import pandas as pd

        return pd.DataFrame(self.rows(kind))

    def save(self, folder: str | Path) -> None:
        """Write `KIND.parquet` for every kind; a reader never sees half a file."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for kind in self.kinds:
            beside = folder / f".tmp-{kind}.parquet"
            self[kind].to_parquet(beside)
            os.replace(beside, folder / f"{kind}.parquet")

    def close(self) -> None:
        """Close the file of JSON lines; the records stay readable in memory."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @classmethod
    def load(cls, folder: str | Path) -> Trace:
        """Read what `save` wrote; from `events.jsonl` if the run did not come to its end.

        Raises:
            ValueError: a file is larger than 4 GiB, or a line is not a JSON record. A last line
                that was cut off by a kill is left out.
        """
        folder, trace = Path(folder), cls()
        tables = sorted(folder.glob("[!.]*.parquet"))
        for path in [*tables, folder / "events.jsonl"]:
            if path.exists() and path.stat().st_size > MAX_TABLE_BYTES:
                raise ValueError(f"{path}: {path.stat().st_size} bytes; at most {MAX_TABLE_BYTES}")
        if tables:
            import pandas as pd

            for path in tables:
                trace._rows[path.stem] = pd.read_parquet(path).to_dict("records")
            return trace
        lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            if number == len(lines) and not line.endswith("\n"):
                break
            trace._read_line(line, f"{folder / 'events.jsonl'}:{number}")
        return trace

    def _read_line(self, line: str, where: str) -> None:
        try:
            fields = json.loads(line)
        except ValueError:
            fields = None
        if not (isinstance(fields, dict) and isinstance(fields.get("kind"), str)):
            raise ValueError(f"{where}: not a record of a trace: {line[:80]!r}")
        self._rows.setdefault(fields.pop("kind"), []).append(fields)
