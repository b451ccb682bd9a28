"""Which results are in a folder."""

import pathlib
import sqlite3

from segmenter_jax.data.bucket_listing import iter_objects
from segmenter_jax.runtime.files import is_local


class Present:
    """Results that are in a folder: local ones are looked for, those in a bucket listed once."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Looks for nothing yet.

        Args:
          folder: of the results, with a folder for each kind of them.
        """
        self._folder, self._listed = folder, set[str]()
        # Names in a private file on disk, which ends with it.
        self._base = sqlite3.connect("", isolation_level=None)
        self._base.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; "
            "CREATE TABLE names (name PRIMARY KEY) WITHOUT ROWID; BEGIN"
        )

    def __contains__(self, result: str) -> bool:
        """Whether there is a file or folder of this path below the folder.

        Raises:
          OSError: a bucket cannot be listed.
        """
        if is_local(self._folder):
            return (self._folder / result).exists()
        kind = result.partition("/")[0]
        if kind not in self._listed:
            found = iter_objects(self._folder / kind, None)
            names = ((f"{kind}/{name}",) for name, _ in found)
            self._base.executemany("INSERT OR IGNORE INTO names VALUES (?)", names)
            self._listed.add(kind)
        # "0" is what follows "/".
        query = "SELECT 1 FROM names WHERE name = ?1 OR (name > ?1 || '/' AND name < ?1 || '0')"
        return self._base.execute(f"{query} LIMIT 1", (result,)).fetchone() is not None
