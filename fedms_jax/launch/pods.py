"""The points of a sweep as Kubernetes Jobs, one per point."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence

from fedms_jax.launch import kubernetes
from fedms_jax.persistence.files import write_atomic

FILE = 'jobs.yaml'


def run(options: argparse.Namespace, sweep, names: Sequence[str]) -> int:
  """Applies the Jobs of the points, but for those that run or are done.

  A failed Job of a point is deleted first, for a Job never starts again.
  """
  program = shlex.split(options.program or kubernetes.PROGRAM)
  base = options.name or sweep.root.name
  jobs = {f'{base}-{number}': name for number, name in enumerate(sweep.points)}
  objects = {
    job: kubernetes.manifests(options, job, [*program, *sweep.words(name)])
    for job, name in jobs.items()
    if name in names
  }
  if options.dry_run:
    print(kubernetes.to_yaml(sum(objects.values(), [])), end='')
    return 0
  found = _states(options)
  for job in list(objects):
    if found.get(job) == 'Failed':
      kubernetes.kubectl(options, 'delete', 'job', job)
    elif job in found:
      print(f'launch: {jobs[job]}: {found[job]}, Job {job}')
      del objects[job]
  if objects:
    path = sweep.root / FILE
    write_atomic(path, kubernetes.to_yaml(sum(objects.values(), [])))
    print(kubernetes.kubectl(options, 'apply', f'--filename={path}'), end='')
  return 0


def _states(options: argparse.Namespace) -> dict[str, str]:
  """The Jobs there are: 'Complete', 'Failed', or 'active'."""
  words = ('get', 'jobs', '--selector=app.kubernetes.io/name=fedms')
  text = kubernetes.kubectl(options, *words, '--output=json')
  states = {}
  for job in json.loads(text)['items']:
    ended = [
      condition['type']
      for condition in job.get('status', {}).get('conditions', [])
      if condition['status'] == 'True'
      and condition['type'] in ('Complete', 'Failed')
    ]
    states[job['metadata']['name']] = (*ended, 'active')[0]
  return states
