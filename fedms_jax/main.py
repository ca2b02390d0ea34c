"""The `fedms` command: parse, build, run.

Exit codes: 0 done; 2 the user can mend it (flags, data, a non-finite loss);
75 saved after a signal, start again with --resume.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

EXIT_USER = 2


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; gives the exit code."""
  from fedms_jax import flags  # jax is imported only after the flags are read

  try:
    config = flags.parse(sys.argv if argv is None else argv)
    from fedms_jax.simulation import command

    return command.run(config)
  except ValueError as error:
    print(f'fedms: {error}', file=sys.stderr)
    return EXIT_USER


if __name__ == '__main__':
  sys.exit(main())
