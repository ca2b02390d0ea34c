"""A run as a Kubernetes Job: writes one YAML file, and applies it.

    fedms launch kubernetes --image=... --volume=claim:/runs \\
      --processes=4 --gpus_per_process=8 -- --workdir=/runs/a --flagfile=...

An Indexed Job has one pod per process; a headless service lets them find pod
0. Needs Kubernetes 1.31 or newer.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from fedms_jax.cluster.signals import EXIT_SAVED
from fedms_jax.launch import command
from fedms_jax.persistence.files import write_atomic
from fedms_jax.shell.exits import EXIT_USER

PROGRAM = 'python -m fedms_jax'  # in the image
PORT = 61440
_CRASHED = 1  # what Python gives for an exception

Manifest = dict[str, Any]


def main(argv: Sequence[str]) -> int:
  """Runs the launcher; gives the exit code."""
  own, flags = command.split(argv)
  options = _parser().parse_args(own)
  folder = command.workdir(command.check(flags))
  name = options.name or pathlib.PurePosixPath(folder).name
  run = [*shlex.split(options.program), *flags, '--resume']
  text = to_yaml(manifests(options, name, run))
  if options.dry_run:
    print(text, end='')
    return 0
  path = pathlib.Path(options.file or f'{name}.yaml')
  write_atomic(path, text)
  print(kubectl(options, 'apply', f'--filename={path}'), end='')
  print(f'launch: applied {path}')
  return 0


def _parser() -> argparse.ArgumentParser:
  options = command.parser('launch kubernetes', 'Applies a run as a Job.')
  command.add_job(options)
  command.add_program(options, PROGRAM)
  command.add_processes(options, default=1)
  add_options(options)
  options.add_argument(
    '--file', default='', help='where the YAML is kept (empty: NAME.yaml)'
  )
  return options


def add_options(options: argparse.ArgumentParser) -> None:
  """What Kubernetes alone has; `fedms launch sweep` has it, too."""
  add = options.add_argument_group('Kubernetes').add_argument
  add('--image', default='', help='image with fedms_jax (required)')
  add('--namespace', default='', help="empty: kubectl's own")
  add('--cpu', default='', help='CPUs of a process, such as 8')
  add('--memory', default='', help='memory of a process, such as 64Gi')
  for name, metavar, text in (
    (
      '--resource',
      'NAME=COUNT',
      'a further resource, such as google.com/tpu=4',
    ),
    ('--volume', 'CLAIM:PATH', 'a claim that all pods mount there'),
    ('--env', 'NAME=VALUE', 'a variable of the environment'),
    ('--node_selector', 'NAME=VALUE', 'a label that nodes must have'),
    ('--toleration', 'KEY', 'a taint of nodes that is accepted'),
  ):
    add(
      name,
      action='append',
      default=[],
      metavar=metavar,
      help=f'{text}; repeatable',
    )


def manifests(
  options: argparse.Namespace, name: str, run: Sequence[str]
) -> list[Manifest]:
  """The objects of one run: its Job, after its service if it needs one.

  Raises:
    ValueError: an option of the wrong form, or a name that is none for
      Kubernetes.
  """
  if not options.image:
    raise ValueError('--image is missing: the image that has fedms_jax.')
  # The host name of a pod is the name of the Job and the pod's number.
  if not re.fullmatch(r'[a-z]([a-z0-9-]{0,50}[a-z0-9])?', name):
    raise ValueError(
      f'{name!r} is no name for a Job; allowed: up to 52 small letters, digits '
      'and dashes, a letter first. Give another with --name.'
    )
  command.check_options(
    options, processes=1, gpus_per_process=0, grace=1, max_restarts=0
  )
  if re.search(r'\s', options.image):
    raise ValueError(f'--image={options.image!r} is no name of an image.')
  if not re.fullmatch(r'([a-z0-9]([a-z0-9-]*[a-z0-9])?)?', options.namespace):
    raise ValueError(
      f'--namespace={options.namespace!r} is no namespace; allowed: small '
      'letters, digits and dashes.'
    )
  labels = {'app.kubernetes.io/name': 'fedms', 'fedms/run': name}
  job = {
    'apiVersion': 'batch/v1',
    'kind': 'Job',
    'metadata': _metadata(options, name, labels),
    'spec': _job(options, name, labels, run),
  }
  if options.processes == 1:
    return [job]
  service = {
    'apiVersion': 'v1',
    'kind': 'Service',
    'metadata': _metadata(options, name, labels),
    'spec': {
      'clusterIP': 'None',
      'selector': {'fedms/run': name},
      # Pods must find each other before any of them is ready.
      'publishNotReadyAddresses': True,
      'ports': [{'name': 'coordinator', 'port': PORT}],
    },
  }
  return [service, job]


def to_yaml(objects: Sequence[Manifest]) -> str:
  """The objects as one YAML file that `kubectl apply` takes."""
  import yaml

  class Dumper(yaml.SafeDumper):
    """Writes equal parts out, instead of anchors that nobody can edit."""

    def ignore_aliases(self, data):
      return True

  text = yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, width=100)
  return f'# Runs of fedms, written by launch/kubernetes.py.\n---\n{text}'


def kubectl(options: argparse.Namespace, *words: str) -> str:
  """Runs kubectl; gives what it prints.

  Raises:
    ValueError: it is not there, or refuses.
  """
  space = [f'--namespace={options.namespace}'] if options.namespace else []
  words = ('kubectl', *space, *words)
  try:
    done = subprocess.run(words, capture_output=True, text=True)
  except FileNotFoundError:
    raise ValueError(
      'there is no kubectl here. Use --dry_run and apply the YAML elsewhere.'
    ) from None
  if done.returncode:
    raise ValueError(f'{shlex.join(words)}: {done.stderr.strip()}')
  return done.stdout


def _metadata(options, name: str, labels: dict[str, str]) -> Manifest:
  space = {'namespace': options.namespace} if options.namespace else {}
  return {'name': name, **space, 'labels': labels}


def _job(options, name: str, labels, run: Sequence[str]) -> Manifest:
  return {
    'completionMode': 'Indexed',
    'completions': options.processes,
    'parallelism': options.processes,
    # Pods that were killed, by themselves or for their memory.
    'backoffLimit': options.max_restarts,
    # A new pod never meets the one that it replaces.
    'podReplacementPolicy': 'Failed',
    'podFailurePolicy': {'rules': _failures()},
    # Process 0 writes the summary; what a peer does then does not matter.
    'successPolicy': {'rules': [{'succeededIndexes': '0'}]},
    'template': {
      'metadata': {'labels': labels},
      'spec': _pod(options, name, run),
    },
  }


def _failures() -> list[Manifest]:
  """What the end of a pod means for the Job; the first rule that fits."""

  def codes(*values: int) -> Manifest:
    return {
      'containerName': 'fedms',
      'operator': 'In',
      'values': list(values),
    }

  disrupted = {'type': 'DisruptionTarget', 'status': 'True'}
  return [
    # A mistake of the user, or of the program: starting again mends neither.
    {'action': 'FailJob', 'onExitCodes': codes(_CRASHED, EXIT_USER)},
    # Saved, or a peer was lost: start again, as often as it takes.
    {'action': 'Ignore', 'onExitCodes': codes(EXIT_SAVED)},
    # The node was drained or the pod preempted.
    {'action': 'Ignore', 'onPodConditions': [disrupted]},
  ]


def _pod(options, name: str, run: Sequence[str]) -> Manifest:
  variables = {'FEDMS_PROCESSES': str(options.processes)}
  if options.processes > 1:
    variables['FEDMS_COORDINATOR'] = f'{name}-0.{name}:{PORT}'
  variables |= _pairs('env', options.env)
  # By which a pod knows that it replaces the one that holds the workdir.
  places = {
    'FEDMS_JOB': "metadata.labels['batch.kubernetes.io/controller-uid']",
    'FEDMS_POD': 'metadata.name',
  }
  mounts = _volumes(options.volume)
  volumes = {f'volume-{i}': claim for i, claim in enumerate(mounts)}
  spec: Manifest = {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': options.grace,
    'containers': [
      {
        'name': 'fedms',
        'image': options.image,
        'command': [_literal(word) for word in run],
        'env': [
          *({'name': k, 'value': _literal(v)} for k, v in variables.items()),
          *(
            {'name': k, 'valueFrom': {'fieldRef': {'fieldPath': v}}}
            for k, v in places.items()
          ),
        ],
        'resources': {'limits': _resources(options)},
        'volumeMounts': [
          {'name': volume, 'mountPath': mounts[claim]}
          for volume, claim in volumes.items()
        ]
        + [{'name': 'shm', 'mountPath': '/dev/shm'}],
      }
    ],
    'volumes': [
      {'name': volume, 'persistentVolumeClaim': {'claimName': claim}}
      for volume, claim in volumes.items()
    ]
    # NCCL needs more shared memory than the 64 MiB of a container.
    + [{'name': 'shm', 'emptyDir': {'medium': 'Memory'}}],
  }
  if options.processes > 1:
    spec['subdomain'] = name
  if options.node_selector:
    spec['nodeSelector'] = _pairs('node_selector', options.node_selector)
  if options.toleration:
    spec['tolerations'] = [
      {'key': key, 'operator': 'Exists'} for key in options.toleration
    ]
  return spec


def _literal(text: str) -> str:
  """Text in which Kubernetes replaces no $(NAME) by a variable."""
  return text.replace('$(', '$$(')


def _resources(options) -> dict[str, str]:
  limits = {'cpu': options.cpu, 'memory': options.memory}
  if options.gpus_per_process:
    limits['nvidia.com/gpu'] = str(options.gpus_per_process)
  limits |= _pairs('resource', options.resource)
  limits = {name: value for name, value in limits.items() if value}
  for name, value in limits.items():
    if not re.fullmatch(r'\d+(\.\d+)?(m|k|[KMGTPE]i|[MGTPE])?', value):
      raise ValueError(
        f'{name}={value!r} is no quantity; write 8, 500m, 64Gi or the like.'
      )
  return limits


def _pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
  """NAME=VALUE words as a dict."""
  pairs = {}
  for text in texts:
    name, given, value = text.partition('=')
    if not name or not given:
      raise ValueError(f'--{option}={text!r}: write --{option}=NAME=VALUE.')
    pairs[name] = value
  return pairs


def _volumes(texts: Sequence[str]) -> dict[str, str]:
  """CLAIM:PATH words as a dict."""
  mounts = {}
  for text in texts:
    claim, _, path = text.partition(':')
    if not claim or not path.startswith('/'):
      raise ValueError(
        f'--volume={text!r}: write --volume=CLAIM:/PATH, the name of a '
        'PersistentVolumeClaim and where the pods see it.'
      )
    mounts[claim] = path
  return mounts


if __name__ == '__main__':
  sys.exit(command.run(main))
