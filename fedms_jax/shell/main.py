"""The `fedms` command: parse, build, run; or one of `commands.py`.

Exit codes: 0 done; 2 the user can mend it (flags, data, a non-finite loss);
75 saved after a signal, start again with --resume.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

EXIT_USER = 2


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; gives the exit code."""
  # jax is imported only after the flags are read.
  from fedms_jax.shell import arguments, commands, flags

  ours = argv is None  # the process, not only this call
  try:
    name, words = commands.split(sys.argv if ours else argv)
    if name:
      return commands.run(name, words)
    config = flags.parse(words)
    from fedms_jax.cluster import memory
    from fedms_jax.shell import run

    if ours:
      memory.keep_memory()
    return run.run(config)
  except ValueError as error:
    print(f'fedms: {arguments.in_flags(error)}', file=sys.stderr)
    return EXIT_USER


if __name__ == '__main__':
  sys.exit(main())
