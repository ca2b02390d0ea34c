"""The launchers by their names in a checkout: `python -m launch.slurm ...` is
`fedms launch slurm ...`. They lie in `fedms_jax/launch`."""

from fedms_jax.launch import __path__  # noqa: F401
