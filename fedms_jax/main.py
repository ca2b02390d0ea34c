"""`python -m fedms_jax.main`, as scripts of earlier versions say it."""

import sys

from fedms_jax.shell.main import main

if __name__ == '__main__':
  sys.exit(main())
