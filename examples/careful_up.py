"""A plan is data: show what would be done and why, and do it only if it interrupts nobody.

    sudo python examples/careful_up.py hutch.toml

Refuses, with exit code 3, while the file would restart or make anew a workspace that runs.
"""

from __future__ import annotations

import sys

import hutch


def main(file: str) -> int:
    config = hutch.load(file)
    plan = hutch.plan(config)
    for action in plan.actions:
        print(f"{action.workspace}: {action.action}")
        for change in action.reasons:
            print(f"    {change.key}: {change.old!r} -> {change.new!r}")

    interrupted = [action.workspace for action in plan.actions if action.action in ("restart", "recreate")]
    if interrupted:
        print(f"not done: it would interrupt {', '.join(interrupted)}")
        return 3
    hutch.up(config)
    for name in config.workspaces:
        status = hutch.Workspace(name).status()
        print(f"{name} is {status['state']} at {status['ip']}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        sys.exit(main(sys.argv[1]))
    except hutch.ConfigError as error:  # all that is wrong with the file, with lines
        sys.exit(error.details)
    except hutch.HutchError as error:
        sys.exit(f"{error}\n{error.details}")
