"""smartgpu mix --sweep: how many tasks? A table of mixtures of several numbers of tasks, to choose one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from smartgpu.commands.folder import SWEEP
from smartgpu.commands.mix import check_sizes, read
from smartgpu.config import Config
from smartgpu.files import replacing
from smartgpu.job import versions
from smartgpu.mixture import SweepRow, sweep
from smartgpu.mixture.sweeping import check_counted
from smartgpu.seconds import Seconds

SCHEMA = 1  # of sweep.json


def run(config: Config, progress: bool) -> tuple[list[SweepRow], Path | None]:
    """The table, and where it is written (OUT/sweep.json, where there is an OUT). Raises as mix.run()."""
    for name in ("n_tasks", "export", "format", "report"):
        if getattr(config, name) not in (None, False):
            raise ValueError(
                f"--sweep cannot be combined with --{name.replace('_', '-')}: it writes no mixture"
            )
    path = None if config.out is None else table_path(config.out, SWEEP, {"schema", "sweep", "run"})
    given = read(config)
    sizes = list(config.sweep)
    check_sizes(config, given, sizes)
    check_counted(given.call["row_objective"])
    identity = given.source.identity(config)
    seconds = Seconds()
    x = given.source.vectors(config, seconds, progress)
    tasks, templates = given.arguments()
    how = given.arguments_with(config, x, seconds, progress)
    rows = sweep(x, tasks, sizes, config.n_rows, templates, **how)
    if path is not None:
        held = {
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "sweep": [row.to_dict() for row in rows],
            "pool": {"source": given.source.pool.source, **given.record["pool"]},
            "run": {**given.record, "embeddings": identity},
            "versions": versions(),
        }
        with replacing(path, "w") as file:
            json.dump(held, file, indent=1, ensure_ascii=False)
            file.write("\n")
    return rows, path


def table_path(out: str, name: str, keys: set[str]) -> Path:
    """OUT/name; one that smartgpu did not write, with these keys, is not replaced."""
    folder = Path(out).expanduser()
    path = folder / name
    if not out or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"--out must be a folder, got {f'the file {out}' if out else 'no name'}")
    if path.exists():
        try:
            ours = keys <= json.loads(path.read_text(encoding="utf-8")).keys()
        except (ValueError, AttributeError):
            ours = False
        if not ours:
            raise ValueError(f"{path} exists and is not of smartgpu: move it, or choose another folder")
    return path
