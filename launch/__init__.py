"""How runs start: several processes on this machine, SLURM, Kubernetes, sweeps.

Run from the checkout: `python -m launch.local ...`; see launch/README.md.
"""
