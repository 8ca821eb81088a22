"""A checkout is tested in a workspace of its own, which may be broken by what it runs, and the results come back.

    sudo python examples/agent_checkout.py hutch.toml WORKSPACE CHECKOUT RESULTS -- COMMAND...

Copies CHECKOUT in as ~/work, runs COMMAND there, and copies ~/work/results to RESULTS on the host, if it made any.
What comes back is the workspace's own affair: nothing in it can be written outside of RESULTS, and links that lead out
of it are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import hutch


def main(file: str, name: str, checkout: str, results: str, command: Sequence[str]) -> int:
    config = hutch.load(file)
    hutch.up(config, [name])
    workspace = hutch.Workspace(name)

    workspace.run(["rm", "-rf", "work"], check=True)
    copied = workspace.put(checkout, "work")
    print(f"copied {copied.files} files, {copied.size} bytes")

    try:
        tests = workspace.run(command, cwd="work", env={"CI": "1"}, capture=True, text=True, timeout=600)
    except hutch.RunTimeout as error:
        print(f"{error}; until then it said:\n{error.result.stdout}")
        return 1
    print(tests.stdout, end="")
    print(f"exit code {tests.returncode}")

    if workspace.run(["test", "-e", "work/results"]).returncode == 0:
        copied = workspace.get("work/results", results, limit=100 << 20)
        print(f"{copied.files} results are in {results}")
        for what in copied.left_out:
            print(f"left out: {what}")
    return tests.returncode


if __name__ == "__main__":
    if len(sys.argv) < 7 or sys.argv[5] != "--":
        sys.exit(__doc__)
    try:
        sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[6:]))
    except hutch.HutchError as error:
        sys.exit(f"{error}\n{error.details}")
