"""`python -m fedms_jax` is `fedms`."""

import sys

from fedms_jax.shell.main import main

sys.exit(main())
