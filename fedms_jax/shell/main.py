"""The `fedms` command: parse, build, run; or one of `commands.py`.

The exit codes are those of `exits.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fedms_jax.cluster import signals

# jax is imported only after the flags are read.
from fedms_jax.shell import commands, exits, flags, manual


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; gives the exit code."""
  ours = argv is None  # the process, not only this call

  def body() -> int:
    name, words = commands.split(sys.argv if argv is None else argv)
    page = manual.asked(name, words)
    if page is not None:
      print(page)
      return 0
    if name:
      return commands.run(name, words)
    config = flags.parse(words)
    from fedms_jax.cluster import memory
    from fedms_jax.shell import run, said

    if ours:
      memory.keep_memory()
      said.own_process()
    return run.run(config)

  if ours:
    exits.own_process()
  code = exits.code_of(body)
  if ours and code:
    # What the devices still compute nobody waits for: Python's orderly end
    # would take its memory away below it.
    signals.leave(code)
  return code


if __name__ == '__main__':
  sys.exit(main())
