"""One command in many workspaces at once; the first that succeeds ends the others.

    sudo python examples/many_at_once.py hutch.toml -- COMMAND...

Brings up all workspaces of the file, runs COMMAND in each, and prints who was first. The others' commands are killed,
by cancelling the tasks that wait for them.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from hutch import ConfigError, HutchError, aio


async def attempt(name: str, command: Sequence[str]) -> tuple[str, str]:
    """The name of a workspace, and what a command that succeeds says there."""
    result = await aio.Workspace(name).run(command, capture=True, text=True, check=True, timeout=600)
    return name, result.stdout


async def main(file: str, command: Sequence[str]) -> int:
    config = await aio.load(file)
    await aio.up(config, listen=lambda name, event, text: print(f"{name or 'hutch'}: {event} {text}".rstrip()))

    waiting = {asyncio.create_task(attempt(name, command)) for name in config.workspaces}
    winner = None
    while waiting and winner is None:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if (error := task.exception()) is None:
                winner = task.result()
            else:
                print(error)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)  # each has killed its command when it is done

    if winner is None:
        print("none succeeded")
        return 1
    name, output = winner
    print(f"{name} was first: {output.strip()}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 4 or sys.argv[2] != "--":
        sys.exit(__doc__)
    try:
        sys.exit(asyncio.run(main(sys.argv[1], sys.argv[3:])))
    except ConfigError as error:
        sys.exit(error.details)
    except HutchError as error:
        sys.exit(f"{error}\n{error.details}")
