"""The command line: smartgpu select, rank, evaluate, demo."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smartgpu.config import Config, check_value, load_config
from smartgpu.version import __version__

HELP = {
    "select": "choose the best k rows of a pool",
    "rank": "order the whole pool: every prefix is the selection of that size",
    "evaluate": "score chosen rows, from any tool",
    "demo": "write a small instruction pool and select from it",
}
SHOWN = 8  # chosen rows printed


def parser() -> argparse.ArgumentParser:
    """Every option is a field of Config; flags that are not given are not set, so that --config can speak."""
    top = argparse.ArgumentParser(
        prog="smartgpu", description="Choose training data from large pools, exactly."
    )
    top.add_argument("--version", action="version", version=f"smartgpu {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, text in HELP.items():
        sub = commands.add_parser(command, help=text, description=text.capitalize() + ".")
        for f in dataclasses.fields(Config):
            if command in f.metadata["on"]:
                _add(sub, f)
        sub.add_argument(
            "--config", metavar="YAML", help="read options from a file, by the same names; flags win"
        )
        if command == "evaluate":
            sub.add_argument("--json", action="store_true", help="print JSON")
    return top


def _add(sub: argparse.ArgumentParser, f: dataclasses.Field) -> None:
    meta = f.metadata
    how: dict[str, Any] = {"help": meta["help"], "default": argparse.SUPPRESS}
    if meta.get("positional"):
        sub.add_argument(f.name, nargs="?", metavar="POOL", **how)
        return
    flags = [*([meta["short"]] if "short" in meta else []), "--" + f.name.replace("_", "-")]
    if f.type == "bool":
        sub.add_argument(*flags, action="store_true", **how)
        return
    kinds = {"int | float": number, "float": float, "int": int}
    kind = next((parse for name, parse in kinds.items() if name in str(f.type)), str)
    if meta.get("choices"):
        how["choices"] = meta["choices"]
    if meta["many"]:
        how["nargs"] = "+"
    sub.add_argument(*flags, type=kind, metavar=None if "choices" in how else f.name.upper(), **how)


def number(text: str) -> int | float:
    """'5000' is a count, '0.05' a share."""
    try:
        return int(text) if re.fullmatch(r"[+-]?[0-9_]+", text) else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a number of rows or a share such as 0.05, got {text!r}"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for a failure, 2 for bad input, 130 when interrupted."""
    arguments = vars(parser().parse_args(argv))
    command, file = arguments.pop("command"), arguments.pop("config")
    as_json = arguments.pop("json", False)
    try:
        options = load_config(file, command) if file else {}
        fields = {f.name: f for f in dataclasses.fields(Config)}
        options |= {name: check_value(fields[name], value, name) for name, value in arguments.items()}
        config = Config(**options)
        _logging(config)
        progress = not config.quiet and sys.stderr.isatty()
        if command == "evaluate":
            _evaluate(config, progress, as_json)
        elif command == "demo":
            _demo(config, progress)
        else:
            _run(config, command, progress)
    except KeyboardInterrupt:
        print("smartgpu: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        print(f"smartgpu {command}: {error}", file=sys.stderr)
        return 2
    except (OSError, MemoryError) as error:
        print(f"smartgpu {command}: {error or 'out of memory'}", file=sys.stderr)
        return 1
    return 0


def _logging(config: Config) -> None:
    level = logging.WARNING if config.quiet else logging.DEBUG if config.verbose else logging.INFO
    log = logging.getLogger("smartgpu")
    log.setLevel(level)
    if not any(isinstance(h, logging.StreamHandler) for h in log.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("smartgpu: %(message)s"))
        log.addHandler(handler)


def _run(config: Config, command: str, progress: bool) -> None:
    from smartgpu import runs

    manifest, selection, pool = runs.run(config, command, progress)
    if selection is None:
        print(f"{config.out} holds this selection already; --overwrite starts anew")
        return
    print(dataclasses.replace(selection, seconds=manifest["seconds"]))
    _show(pool, selection, config.text)
    written = ", ".join(f"{cut['file']} ({cut['k']} rows)" for cut in manifest["files"])
    print(f"written to {config.out}: {written}, selection.json, selection.npz")


def _show(pool: Any, selection: Any, text: list[str] | None) -> None:
    """The first picks with their text, where there is some."""
    from smartgpu.io import text_fields

    try:
        fields = text_fields(pool, text)
    except ValueError:
        return
    print(f"  {'rank':>5} {'row':>8} {'gain':>10}  {' + '.join(fields)}")
    for at, row in enumerate(pool.rows(selection.indices[:SHOWN])):
        words = " ".join(_words(row.get(name)) for name in fields)
        words = "".join(c if c.isprintable() else " " for c in words)
        print(f"  {at:>5} {selection.indices[at]:>8} {selection.gains[at]:>10.4g}  {words[:90]}")


def _words(value: Any) -> str:
    text = (
        value
        if isinstance(value, str)
        else ""
        if value is None
        else json.dumps(value, ensure_ascii=False, default=str)
    )
    return " ".join(text.split())


def _evaluate(config: Config, progress: bool, as_json: bool) -> None:
    from smartgpu import runs

    result = runs.evaluate(config, progress)
    print(json.dumps(result.to_dict(), indent=1) if as_json else result)


def _demo(config: Config, progress: bool) -> None:
    from smartgpu.demo import write_demo

    folder = Path(config.out or "smartgpu-demo")
    folder.mkdir(parents=True, exist_ok=True)
    pool = write_demo(folder / "pool.jsonl")
    config = dataclasses.replace(config, pool=str(pool), out=str(folder / "selection"), k=config.k or 300)
    print(
        f"wrote the demo pool; now running: smartgpu select {shlex.quote(str(pool))} -k {config.k} --out {config.out}\n"
    )
    _run(config, "select", progress)


if __name__ == "__main__":
    sys.exit(main())
