"""How runs start: several processes on this machine, SLURM, Kubernetes, sweeps.

`fedms launch local|slurm|kubernetes|sweep ...`; see launch/README.md.
"""
