"""The command line: smartgpu select, rank, plan, mix, evaluate, graph, report, demo, doctor."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import importlib.util
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from smartgpu import launch
from smartgpu.backends.gpu import DeviceLostError
from smartgpu.config import Config
from smartgpu.config_file import check_value, load_config
from smartgpu.ranks import RankError
from smartgpu.version import __version__

HELP = {
    "select": "choose the best k rows of a pool",
    "rank": "order the whole pool: every prefix is the selection of that size",
    "plan": "say what select, with the same options, will allocate and about how long it takes",
    "mix": "choose tasks, how many rows of each, and which: a SMART mixture, ready for a trainer",
    "evaluate": "score chosen rows, from any tool",
    "graph": "write the nearest neighbours of every row: a sparse similarity to select with",
    "report": "draw what an output folder holds: one page that needs no network, and its numbers",
    "demo": "write a small instruction pool and select from it",
    "doctor": "say what is installed and what it enables, and check every backend on this machine",
}
SHOWN = 8  # chosen rows printed
WIDTH = 90  # of their text
FIELDS = {f.name: f for f in dataclasses.fields(Config)}
log = logging.getLogger("smartgpu")


class _Parser(argparse.ArgumentParser):
    """argparse, with errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """Every option is a field of Config; flags that are not given are not set, so that --config can speak."""
    top = _Parser(prog="smartgpu", description="Choose training data from large pools, exactly.")
    top.add_argument("--version", action="version", version=f"smartgpu {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, text in HELP.items():
        sub = commands.add_parser(
            command, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
        )
        for f in FIELDS.values():
            if command in f.metadata["on"]:
                _add(sub, f, command)
        text = "read options from a file, by the same names; flags win"
        sub.add_argument("--config", metavar="YAML", help=text)
    return top


def _add(sub: argparse.ArgumentParser, f: dataclasses.Field, command: str) -> None:
    meta = f.metadata
    how: dict[str, Any] = {"help": meta["help"], "default": argparse.SUPPRESS}
    if command in meta.get("positional", ()):
        sub.add_argument(f.name, nargs="?", metavar=f.name.upper(), **how)
        return
    flags = [*([meta["short"]] if "short" in meta else []), "--" + f.name.replace("_", "-")]
    if f.type == "bool":
        sub.add_argument(*flags, action="store_true", **how)
        return
    if meta.get("choices"):  # check_value refuses others, in words
        how["help"] += f": {', '.join(meta['choices'])} (default: {f.default or meta.get('none', 'as POOL')})"
    if meta["many"] and not meta.get("commas"):
        how["nargs"] = "+"
    if meta.get("bare"):  # without a value: yes
        how |= {"nargs": "?", "const": True}
    kinds = {"int | float": number, "float": float, "int": int}
    kind = next(
        (parse for name, parse in kinds.items() if name in str(f.type) and not meta.get("commas")), str
    )
    if meta.get("bare"):
        kind = functools.partial(limit, expected=f"a number for {flags[-1]}, or none")
    sub.add_argument(*flags, type=kind, metavar=f.name.upper(), **how)


def _flag(name: str) -> str:
    return "-k" if name == "k" else "--" + name.replace("_", "-")


def number(text: str, expected: str = "a number of rows or a share such as 0.05") -> int | float:
    """'5000' is a count, '0.05' a share."""
    try:
        return int(text) if re.fullmatch(r"[+-]?[0-9_]+", text) else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}") from None


def limit(text: str, expected: str) -> int | float | str:
    """The same, or '0.01%'."""
    return text if text.rstrip().endswith("%") else number(text, expected)


def _parse(argv: Sequence[str] | None) -> tuple[str, str | None, dict[str, Any]]:
    """(command, --config, the options that were given as flags)."""
    top = parser()
    found, unknown = top.parse_known_args(argv)
    given = vars(found)
    command, file = given.pop("command"), given.pop("config")
    if command == "graph" and "out" not in given and len(unknown) == 1 and not unknown[0].startswith("-"):
        given["out"] = unknown.pop()  # argparse takes optional words only side by side: POOL -k 32 OUT
    if unknown:
        flags = [_flag(f.name) for f in FIELDS.values() if command in f.metadata["on"]]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], [*flags, "--config"], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        top.exit(
            2, f"smartgpu {command}: unknown argument {unknown[0]!r}{hint} (see smartgpu {command} --help)\n"
        )
    return command, file, given


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for a failure, 2 for bad input, 130 when interrupted.

    Of doctor: 1 where something that is installed is wrong.
    """
    command, file, given = _parse(argv)
    with _logging(_level(given.get("quiet"), given.get("verbose"))) as handler:
        try:
            options = load_config(file, command) if file else {}
            options |= {name: check_value(FIELDS[name], value, _flag(name)) for name, value in given.items()}
            config = Config.of(command, options)
            handler.setLevel(_level(config.quiet, config.verbose))
            if launch.started() and launch.begin(config.backend or "auto") > 0:
                handler.setLevel(logging.ERROR)  # rank 0 speaks for all
                launch.follow()
            status = _run(config, command, progress=not config.quiet and sys.stderr.isatty())
            sys.stdout.flush()
        except KeyboardInterrupt:
            print(f"smartgpu {command}: interrupted; the same command goes on from here", file=sys.stderr)
            return launch.end(130, broken=True)
        except BrokenPipeError:  # nobody reads on: what is left in the buffer goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return launch.end(1, broken=True)
        except (ValueError, FileNotFoundError, ImportError) as error:
            return launch.end(_fail(command, error, 2))
        except (OSError, MemoryError, DeviceLostError, RankError) as error:
            return launch.end(_fail(command, error, 1), broken=True)
    return launch.end(status)


def _fail(command: str, error: BaseException, status: int) -> int:
    text = str(error) or ("out of memory" if isinstance(error, MemoryError) else type(error).__name__)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    print(f"smartgpu {command}: {launch.who()}{' '.join(text.split())}", file=sys.stderr)
    log.debug("where it came from:", exc_info=error)
    return status


def _level(quiet: bool | None, verbose: bool | None) -> int:
    return logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO


class _Lines(logging.StreamHandler):
    """Log lines that push a progress bar down instead of running into it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode(self.stream):
            super().emit(record)


@contextmanager
def _logging(shown: int) -> Iterator[logging.Handler]:
    """smartgpu's log lines on stderr, for as long as the command runs."""
    handler, level = _Lines(sys.stderr), log.level
    handler.setFormatter(logging.Formatter("smartgpu: %(message)s"))
    handler.setLevel(shown)
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    try:
        yield handler
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _run(config: Config, command: str, progress: bool) -> int:
    if command == "doctor":
        from smartgpu import doctor

        report = doctor.examine()
        print(json.dumps(report.to_dict(), indent=1) if config.json else report)
        return int(bool(report.wrong))
    from smartgpu.commands import select

    if command == "mix":
        _mix(config, progress)
    elif command == "graph":
        from smartgpu.commands import graph

        print(graph.run(config, progress))
    elif command == "report":
        from smartgpu.commands import report

        print(f"wrote {report.run(config, progress)}")
    elif command == "evaluate":
        result = select.evaluate(config, progress)
        print(json.dumps(result.to_dict(), indent=1) if config.json else result)
    elif command == "plan":
        result = select.plan(config, progress)
        print(json.dumps(result.to_dict(), indent=1) if config.json else result)
    elif command == "demo":
        _demo(config, progress)
    elif config.alpha_path:
        from smartgpu.commands import alpha

        path, written = alpha.run(config, progress)
        print(path)
        if written is not None:
            print(f"\n{written} holds this table")
    else:
        _report(select.run(config, command, progress), config)
    return 0


def _mix(config: Config, progress: bool) -> None:
    from smartgpu.commands import mix, sweep

    if config.sweep:
        rows, path = sweep.run(config, progress)
        _compare_sizes(rows)
        if path is not None:
            print(f"\n{path} holds this table")
        return
    done = mix.run(config, progress)
    if not done.fresh:
        print(f"{config.out} holds this mixture already (--overwrite makes it anew):\n")
    _report_mix(done.mixture, done.manifest, config.out)


def _report_mix(mixture: Any, manifest: dict[str, Any], out: str) -> None:
    """The largest tasks, what was written, and what reads it."""
    options = mixture.options
    by = f", tasks by {options['task_objective']['name']}" if mixture.method == "smart" else ""
    counted = f"{len(mixture)} of {mixture.n} rows, {len(mixture.tasks)} of {mixture.n_tasks_in_pool} tasks"
    print(f"{counted} (by {mixture.method}{by}, rows by {options['row_objective']['name']})")
    if mixture.cost is not None:
        print(f"  cost {mixture.cost:g} of a budget of {options['budget']:g}")
    print()
    tasks = sorted(mixture.tasks, key=lambda task: -task.budget)  # stable: in the order of selection
    shown = tasks[: SHOWN if len(tasks) > SHOWN + 1 else len(tasks)]
    table = [[_clipped(str(t.task)), str(t.size), str(t.budget), f"{t.gain:.5g}"] for t in shown]
    rest = tasks[len(shown) :]
    if rest:
        sums = [str(sum(t.size for t in rest)), str(sum(t.budget for t in rest))]
        table.append([f"{len(rest)} more tasks", *sums, ""])
    _table(["task", "in the pool", "budget", "gain"], table)
    full = sum(task.budget == task.size for task in tasks)
    none = sum(not task.budget for task in tasks)
    if full:
        print(f"\n  tasks that give all their rows: {full} of {len(tasks)}")
    if none:
        print(f"\n  tasks that give no rows: {none} of {len(tasks)}")
    written = sum(cut["file"].startswith("tasks/") for cut in manifest["files"])
    combined = next(cut for cut in manifest["files"] if cut["file"].startswith("mixed."))
    held = f"{combined['file']} ({combined['rows']} rows), tasks/ ({written} file{'s' * (written != 1)})"
    print(f"\n{out} holds {held}, mixture.json and mixture.npz")
    for name, export in manifest["exports"].items():
        print(f"  {name}: {', '.join(file for file in export['files'] if file.count('/') == 1)}")


def _compare_sizes(rows: list[Any]) -> None:
    """Mixtures of several numbers of tasks, one line each."""
    paid = rows[0].cost is not None
    print("mixtures of one budget\n" if paid else f"mixtures of {rows[0].n_rows} rows\n")
    head = ["tasks", "coverage", "of left out", "effective tasks", "largest share", "duplicates"]
    head += ["rows", "cost"] if paid else []
    table = [
        [
            str(row.n_tasks),
            f"{row.coverage:.2%}",
            "-" if row.coverage_left_out is None else f"{row.coverage_left_out:.2%}",
            f"{row.effective_tasks:.1f}",
            f"{row.largest_share:.2%}",
            str(row.duplicates),
            *([str(row.n_rows), f"{row.cost:g}"] if paid else []),
        ]
        for row in rows
    ]
    _table(head, table)
    print(
        "\n  coverage: f(S) / f(V) of facility location on the prompts; of left out: of tasks that give no rows"
    )
    print("  effective tasks: exp(entropy) of the tasks' shares; duplicates: chosen rows that equal another")


def _table(head: list[str], rows: list[list[str]]) -> None:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, *rows]:
        cells = [f"{row[0]:<{widths[0]}}", *(f"{v:>{w}}" for v, w in zip(row[1:], widths[1:], strict=True))]
        print(f"  {'  '.join(cells)}".rstrip())


def _clipped(text: str) -> str:
    words = _words(text)
    return words if len(words) <= WIDTH - 30 else words[: WIDTH - 33] + "..."


def _report(done: Any, config: Config) -> None:
    """What was chosen, and where it is."""
    if done.x is None:
        print(f"{config.out} holds this selection already (--overwrite makes it anew):\n")
    print(done.selection)
    _show(done.pool, done.selection, config.text)
    written = ", ".join(f"{cut['file']} ({cut['k']} rows)" for cut in done.manifest["files"])
    print(f"\n{config.out} holds {written}, selection.json and selection.npz")


def _show(pool: Any, selection: Any, text: list[str] | None) -> None:
    """The first picks with their text, where there is some."""
    from smartgpu.io import text_fields

    try:
        fields = text_fields(pool, text)
    except ValueError:
        return
    print(f"\n  {'rank':>5} {'row':>8} {'gain':>10}  {' + '.join(fields)}")
    for at, row in enumerate(pool.rows(selection.indices[:SHOWN])):
        words = " ".join(filter(None, (_words(row.get(name)) for name in fields)))
        words = words if len(words) <= WIDTH else words[: WIDTH - 3] + "..."
        print(f"  {at:>5} {selection.indices[at]:>8} {selection.gains[at]:>10.5g}  {words}")
    if selection.k > SHOWN:
        print(f"  {'...':>5} {'':>8} {'...':>10}")


def _words(value: Any) -> str:
    """A field's value in one line that a terminal can show."""
    if not isinstance(value, str):
        value = "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return "".join(c if c.isprintable() else " " for c in " ".join(value.split()))


def _demo(config: Config, progress: bool) -> None:
    from smartgpu.commands import select

    folder = Path(config.out or "smartgpu-demo").expanduser()
    pool = _demo_pool(folder, config.overwrite)
    out = folder / "selection"
    config = dataclasses.replace(config, pool=str(pool), out=str(out), k=config.k or 300)
    command = shlex.join(["smartgpu", "select", str(pool), "-k", str(config.k), "--out", str(out)])
    print(f"{pool} holds the demo pool; now the same as\n  {command}\n", flush=True)
    done = select.run(config, "select", progress)
    _report(done, config)
    if done.x is not None:
        _compare(done, config)
    if all(importlib.util.find_spec(name) for name in ("jinja2", "plotly")):
        print(f"\n{shlex.join(['smartgpu', 'report', str(out)])} draws it: a page to open in a browser")


def _demo_pool(folder: Path, overwrite: bool) -> Path:
    """The pool's file; another file of that name is not replaced unasked."""
    from smartgpu.demo import write_demo

    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out must be a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pool.jsonl"
    fresh = write_demo(folder / ".pool.jsonl")
    try:
        if path.exists() and not overwrite and path.read_bytes() != fresh.read_bytes():
            raise ValueError(f"{path} is not the demo pool: name another folder with --out, or --overwrite")
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    return path


def _compare(done: Any, config: Config) -> None:
    """The selection beside as many rows drawn at random."""
    import numpy as np

    from smartgpu import evaluate

    drawn = np.random.default_rng(0).choice(done.pool.n, done.selection.k, replace=False)
    how = {"objective": config.make_objective(), "similarity": config.make_similarity()}
    ours, theirs = (evaluate(done.x, rows, **how) for rows in (done.selection.indices, drawn))
    tasks = np.array(done.pool.column("task"))
    counts = [len(set(tasks[rows].tolist())) for rows in (done.selection.indices, drawn)]
    shares = [f"{e.coverage:.1%}" if e.coverage else f"{e.value:.4g}" for e in (ours, theirs)]
    what = "coverage of the pool" if ours.coverage else "f(S)"
    counted = f"tasks of {len(set(tasks.tolist()))}"
    print(f"\n{'':13}  {what}  {counted}")
    for name, share, count in zip(("these rows", "random rows"), shares, counts, strict=True):
        print(f"  {name:<11}  {share:>{len(what)}}  {count:>{len(counted)}}")


if __name__ == "__main__":
    sys.exit(main())
