"""smartgpu select --alpha-path: how much quality? A table of several alphas, to choose one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from smartgpu.alpha import AlphaPath, alpha_path
from smartgpu.checkpoint import fingerprint
from smartgpu.commands.fields import quality_objective
from smartgpu.commands.folder import ALPHA_PATH
from smartgpu.commands.select import budgets, check_room, dry_run
from smartgpu.commands.source import read_chosen, read_source
from smartgpu.commands.sweep import table_path
from smartgpu.config import Config
from smartgpu.files import replacing
from smartgpu.seconds import Seconds
from smartgpu.version import __version__

SCHEMA = 1  # of alpha_path.json
NO = ("coverage", "sizes", "format", "report", "plan")  # options of a selection that is written


def run(config: Config, progress: bool) -> tuple[AlphaPath, Path | None]:
    """The path, and where it is written (OUT/alpha_path.json, where there is an OUT). Raises as select.run()."""
    for name in NO:
        if getattr(config, name) not in (None, False):
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"--alpha-path cannot be combined with {flag}: it compares, and selects nothing")
    file = None
    if config.out is not None:
        file = table_path(config.out, ALPHA_PATH, {"schema", "points", "run"})
    call = dry_run(config)
    budgets(config, 1 << 62)
    source = read_source(config)
    n = source.pool.n
    k, _ = budgets(config, n)
    rows = {name: read_chosen(getattr(config, name), n, name) for name in ("given", "exclude")}
    check_room(n, k, **rows)
    spec = quality_objective(config, source.pool)
    record = {
        "command": "select",
        "version": __version__,
        **config.record("select"),
        "pool": {"rows": n, "fingerprint": source.pool.fingerprint()},
        "embeddings": source.identity(config),
        "quality": fingerprint(spec.quality),
        **{name: fingerprint(chosen) if len(chosen) else None for name, chosen in rows.items()},
    }
    del call["objective"]
    x = source.vectors(config, Seconds(), progress)
    path = alpha_path(x, k, spec.quality, config.alpha_path, spec.scale, progress=progress, **rows, **call)
    if file is not None:
        held = {
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **path.to_dict(),
            "pool": {"source": source.pool.source, **record["pool"]},
            "run": record,
        }
        with replacing(file, "w") as out:
            json.dump(held, out, indent=1, ensure_ascii=False)
            out.write("\n")
    return path, file
