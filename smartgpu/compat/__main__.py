"""python -m smartgpu.compat script.py ARGUMENTS: run a script whose `import submodlib`, `import apricot` are ours."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from smartgpu.compat import install

USAGE = "usage: python -m smartgpu.compat SCRIPT [ARGUMENTS]    or    python -m smartgpu.compat -m MODULE [ARGUMENTS]"


def main(arguments: list[str]) -> int:
    module = arguments[:1] == ["-m"]
    rest = arguments[module:]
    if not rest or rest[0] in ("-h", "--help"):
        print(__doc__, USAGE, sep="\n", file=sys.stdout if rest else sys.stderr)
        return 0 if rest else 2
    if not module and not Path(rest[0]).is_file():
        print(f"no file {rest[0]}\n{USAGE}", file=sys.stderr)
        return 2
    names = install()
    print(f"smartgpu.compat: {' and '.join(names)} by smartgpu", file=sys.stderr)
    sys.argv = rest
    if module:
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(rest[0]).resolve().parent)
        runpy.run_path(rest[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
