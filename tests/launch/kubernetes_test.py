"""The YAML is what Kubernetes takes, and its commands find each other."""

import json
import os
import shlex
import subprocess

import kubernetes_validate
import pytest
import yaml

from fedms_jax.launch import kubernetes
from tests.launch import runs

VERSIONS = ('1.31', '1.37')  # the oldest that has all fields, and a new one
PROGRAM = f'--program={shlex.join(runs.STAND_IN)}'


def documents(capsys, *own, flags=()):
  words = ['--dry_run', '--image=fedms:1', *own, '--', *flags]
  assert kubernetes.main(words) == 0
  return list(yaml.safe_load_all(capsys.readouterr().out))


def everything(capsys, folder='/runs/a'):
  return documents(
    capsys,
    PROGRAM,
    '--name=run-1',
    '--namespace=lab',
    '--processes=3',
    '--gpus_per_process=8',
    '--cpu=4',
    '--memory=64Gi',
    '--resource=rdma/ib=1',
    '--volume=claim:/runs',
    '--volume=data:/data',
    '--env=A=b=c',
    '--node_selector=kind=h100',
    '--toleration=gpu',
    flags=[f'--workdir={folder}', '--seed=4'],
  )


@pytest.mark.parametrize('version', VERSIONS)
@pytest.mark.parametrize('many', [True, False])
def test_kubernetes_takes_it(capsys, version, many):
  found = (
    everything(capsys)
    if many
    else documents(capsys, flags=['--workdir=/runs/a'])
  )
  assert [d['kind'] for d in found] == ['Service', 'Job'][not many :]
  for document in found:
    kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize('version', VERSIONS)
def test_the_schemas_do_find_mistakes(capsys, version):
  _, job = everything(capsys)
  job['spec']['podFailurePolicy']['rules'][0]['onExitCode'] = {}
  with pytest.raises(kubernetes_validate.ValidationError):
    kubernetes_validate.validate(job, version, strict=True)


def pods(service, job):
  """What each pod of a job runs, and the variables that it has."""
  pod = job['spec']['template']['spec']
  (container,) = pod['containers']
  assert job['spec']['completionMode'] == 'Indexed'
  names = {
    f'{job["metadata"]["name"]}-{i}.{pod["subdomain"]}'
    for i in range(job['spec']['completions'])
  }
  labels = job['spec']['template']['metadata']['labels']
  assert service['spec']['selector'].items() <= labels.items()
  assert service['metadata']['name'] == pod['subdomain']
  for index in range(job['spec']['completions']):
    given = {e['name']: e.get('value', 'x') for e in container['env']}
    assert given['FEDMS_COORDINATOR'].partition(':')[0] in names
    given['JOB_COMPLETION_INDEX'] = str(index)
    given['KUBERNETES_SERVICE_HOST'] = '10.0.0.1'
    yield container['command'], given


def test_the_commands_of_pods_find_each_other(capsys, tmp_path):
  found = []
  for words, given in pods(*everything(capsys, tmp_path)):
    done = subprocess.run(
      words,
      env=os.environ | given,
      cwd=runs.ROOT,
      capture_output=True,
      text=True,
      check=True,
    )
    found.append(json.loads(done.stdout.split('place ')[1].split(' time')[0]))
  assert found == [['run-1-0.run-1:61440', 3, i, None] for i in range(3)]
  assert '--seed=4\n' in (tmp_path / 'flags.txt').read_text()
  assert (tmp_path / 'summary.json').exists()


def decision(job, code):
  """What Kubernetes does with a job one of whose pods ended with a code."""
  for rule in job['spec']['podFailurePolicy']['rules']:
    if code in rule.get('onExitCodes', {}).get('values', []):
      return rule['action']
  return 'Count'


def test_exit_codes_are_told_apart(capsys):
  (job,) = documents(capsys, '--max_restarts=7', flags=['--workdir=/runs/a'])
  assert job['spec']['backoffLimit'] == 7
  wanted = {1: 'FailJob', 2: 'FailJob', 75: 'Ignore', 137: 'Count'}
  assert {code: decision(job, code) for code in wanted} == wanted


def test_the_job_is_applied(tmp_path, monkeypatch, capsys):
  fake = tmp_path / 'bin' / 'kubectl'
  fake.parent.mkdir()
  fake.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\n')
  fake.chmod(0o755)
  monkeypatch.setenv('PATH', f'{fake.parent}:{os.environ["PATH"]}')
  file = tmp_path / 'a.yaml'
  words = ['--image=i', f'--file={file}', '--namespace=lab', '--']
  assert kubernetes.main([*words, '--workdir=/runs/a']) == 0
  said = (tmp_path / 'said').read_text()
  assert said == f'--namespace=lab apply --filename={file}\n'
  assert yaml.safe_load(file.read_text())['metadata']['name'] == 'a'


@pytest.mark.parametrize(
  ('own', 'flags', 'words'),
  [
    ([], [], '--workdir'),
    (['--image='], ['--workdir=/r'], '--image'),
    ([], ['--workdir=/runs/Seed_1'], '--name'),
    (['--volume=claim'], ['--workdir=/r'], 'CLAIM:/PATH'),
    (['--env=A'], ['--workdir=/r'], 'NAME=VALUE'),
    (['--processes=0'], ['--workdir=/r'], 'at least 1'),
    (['--gpus_per_process=-1'], ['--workdir=/r'], 'at least 0'),
    (['--grace=0'], ['--workdir=/r'], 'at least 1'),
    (['--image=a b'], ['--workdir=/r'], '--image'),
    (['--image=a\nb'], ['--workdir=/r'], 'line breaks'),
    (['--namespace=Lab'], ['--workdir=/r'], '--namespace'),
    (['--cpu=8 cores'], ['--workdir=/r'], 'quantity'),
    (['--memory=64GB'], ['--workdir=/r'], 'quantity'),
    (['--resource=rdma/ib=x'], ['--workdir=/r'], 'quantity'),
    (['--node_selector=a=b\nc'], ['--workdir=/r'], 'line breaks'),
    ([], ['--workdir=/r', '--algorithm.name=fedmx'], 'fedms'),
    ([], ['--workdir=/r', '--lora.rnk=3'], '--lora.rank'),
  ],
)
def test_user_errors(own, flags, words):
  with pytest.raises(ValueError, match=words):
    kubernetes.main(['--dry_run', '--image=i', *own, '--', *flags])


@pytest.mark.parametrize(
  'value', ['a\nb', '- x: y', '"\'', 'yes', '0x10', '#', '{}', '$(HOME)', 'é\n']
)
def test_values_of_variables_arrive_as_they_are(capsys, value):
  (job,) = documents(capsys, f'--env=A={value}', flags=['--workdir=/r'])
  (container,) = job['spec']['template']['spec']['containers']
  (found,) = [e['value'] for e in container['env'] if e['name'] == 'A']
  assert found.replace('$$(', '$(') == value
  assert '$(' not in found.replace('$$(', '')


def test_a_pod_knows_its_job_and_its_name(capsys):
  """So that it takes the lock over from the pod that it replaces."""
  (job,) = documents(capsys, flags=['--workdir=/r'])
  (container,) = job['spec']['template']['spec']['containers']
  paths = {
    e['name']: e['valueFrom']['fieldRef']['fieldPath']
    for e in container['env']
    if 'valueFrom' in e
  }
  assert paths == {
    'FEDMS_JOB': "metadata.labels['batch.kubernetes.io/controller-uid']",
    'FEDMS_POD': 'metadata.name',
  }
