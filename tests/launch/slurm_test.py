"""The batch script, run by bash alone: only srun and scontrol are fakes."""

import os
import shlex
import stat
import subprocess
import sys

import pytest

from fedms_jax.launch import slurm
from fedms_jax.shell import config, flags
from tests.launch import runs

# Process i does the i-th word of $DO: ends with that code, or is killed.
PROGRAM = """\
#!/bin/bash
printf '%s\\n' "$@"
words=($DO)
word=${words[$SLURM_PROCID]}
[[ $word == kill ]] && kill -KILL $$
exit "$word"
"""

# As srun does: every process gets its number, the largest exit code counts.
SRUN = """\
#!/bin/bash
while [[ $1 == --* ]]; do
  [[ $1 == --output=* ]] && log=${1#--output=}
  shift
done
log=${log//%%/%}
most=0
for i in 0 1; do
  SLURM_PROCID=$i "$@" >> "${log//%t/$i}" 2>&1
  code=$?
  (( code > most )) && most=$code
done
exit $most
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch):
  """Puts srun, sbatch and scontrol on the path; they note what they hear."""
  folder = tmp_path / 'bin'
  folder.mkdir()
  note = f'#!/bin/sh\necho "$(basename $0) $*" >> {folder}/heard\necho 12\n'
  texts = {'srun': SRUN, 'sbatch': note, 'scontrol': note, 'program': PROGRAM}
  for name, text in texts.items():
    (folder / name).write_text(text)
    (folder / name).chmod(stat.S_IRWXU)
  monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
  monkeypatch.chdir(runs.ROOT)
  return folder / 'heard'


def run_script(root, words, **environment):
  """Runs a submitted script as SLURM would; gives its exit code."""
  environment = {'SLURM_JOB_ID': '12', 'DO': words} | environment
  done = subprocess.run(
    ['bash', root / slurm.SCRIPT],
    env=os.environ | environment,
    stdout=subprocess.DEVNULL,
  )
  return done.returncode


@pytest.mark.parametrize(
  ('words', 'code', 'again'),
  [
    ('0 0', 0, False),
    ('75 75', 75, True),
    ('0 75', 75, True),
    ('75 kill', 75, True),
    ('2 75', 2, False),
    ('75 2', 2, False),
    ('2 kill', 2, False),
    ('1 75', 1, False),
    ('75 3', 1, False),
    ('1 2', 2, False),
  ],
)
def test_exit_codes(tmp_path, fakes, words, code, again):
  root = tmp_path / "it's 50%"
  assert slurm.main(['--program=program', '--', f'--workdir={root}']) == 0
  assert fakes.read_text() == f'sbatch --parsable {root}/job.sbatch\n'
  assert run_script(root, words) == code
  put_back = 'scontrol requeue 12\n'
  assert (put_back in fakes.read_text()) == again
  for process in range(2):
    log = (root / f'logs/process-{process}.log').read_text()
    assert f'\n--workdir={root}\n--resume\n' in log


def test_a_job_that_was_put_back_too_often_is_given_up(tmp_path, fakes):
  assert slurm.main(['--program=program', '--', f'--workdir={tmp_path}']) == 0
  for starts, again in (('99', True), ('100', False)):
    fakes.unlink()
    fakes.touch()
    code = run_script(tmp_path, '75 75', SLURM_RESTART_COUNT=starts)
    assert (code, 'requeue' in fakes.read_text()) == (75, again)


def directives(capsys, *own, folder='/runs/a'):
  words = ['--dry_run', *own, '--', f'--workdir={folder}']
  assert slurm.main(words) == 0
  text = capsys.readouterr().out
  subprocess.run(['bash', '-n'], input=text, text=True, check=True)
  found = [line for line in text.splitlines() if line.startswith('#SBATCH')]
  return [line.removeprefix('#SBATCH ') for line in found]


def test_the_job_has_what_was_asked_for(capsys):
  found = directives(
    capsys,
    '--nodes=4',
    '--gpus_per_node=8',
    '--cpus_per_process=6',
    '--time=1-00:00',
    '--partition=a',
    '--account=b',
    '--grace=300',
    '--name=c',
    '--sbatch=--mem=64G',
  )
  assert found == [
    '--job-name=c',
    '--nodes=4',
    '--ntasks-per-node=8',
    '--output="/runs/a/slurm-%j.log"',
    '--open-mode=append',
    '--gpus-per-node=8',
    '--cpus-per-task=6',
    '--time=1-00:00',
    '--partition=a',
    '--account=b',
    '--mem=64G',
    '--signal=USR1@300',
    '--requeue',
  ]


def test_without_gpus_there_is_one_process_per_node(capsys):
  assert '--ntasks-per-node=1' in directives(capsys, '--nodes=4')


@pytest.mark.parametrize(
  ('text', 'seconds'),
  [
    ('3', 180),
    ('3:20', 200),
    ('1:00:01', 3601),
    ('2-1', 49 * 3600),
    ('2-1:30', 49 * 3600 + 1800),
    ('2-1:30:05', 49 * 3600 + 1805),
    ('UNLIMITED', None),
  ],
)
def test_time_limits(text, seconds):
  assert slurm.seconds(text) == seconds


@pytest.mark.parametrize(
  ('own', 'flags', 'words'),
  [
    ([], [], '--workdir'),
    (['--time=2'], ['--workdir=/r'], '--grace'),
    (['--time=2 hours'], ['--workdir=/r'], 'HH:MM:SS'),
    (['--nodes=0'], ['--workdir=/r'], '--nodes'),
    (
      ['--gpus_per_node=2', '--processes_per_node=2'],
      ['--workdir=/r'],
      'one process per GPU',
    ),
    ([], ['--workdir=/r', '--lora.rnk=3'], '--lora.rank'),
    ([], ['--workdir=a"b'], 'quotes'),
    (['--grace=0'], ['--workdir=/r'], 'at least 1'),
    (['--gpus_per_node=-1'], ['--workdir=/r'], 'at least 0'),
    (['--max_restarts=-1'], ['--workdir=/r'], 'at least 0'),
    (['--sbatch=mem=3G'], ['--workdir=/r'], 'dashes'),
    ([], ['--workdir=/r', '--algorithm.name=fedmx'], "Did you mean 'fedms'"),
    ([], ['--workdir=/r', '--schedule.start=99'], 'blocks'),
    ([], ['--workdir=/r', '--schedule=manual'], 'depths'),
    (
      [],
      ['--workdir=/r', '--server.aggregator=krum', '--cohort.size=2'],
      'krum',
    ),
    ([], ['--workdir=/r', '--cohort.size=99'], 'num_clients'),
    ([], ['--workdir=/r', '--distributed.processes=4'], 'launcher gives'),
    ([], ['--workdir=/r', '--data.source=a\nb'], 'flag file'),
  ],
)
def test_user_errors(own, flags, words):
  with pytest.raises(ValueError, match=words):
    slurm.main(['--dry_run', *own, '--', *flags])


def test_without_slurm_the_script_stays(tmp_path, monkeypatch):
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(ValueError, match='no sbatch'):
    slurm.main([f'--program={sys.executable}', '--', f'--workdir={tmp_path}'])
  assert (tmp_path / slurm.SCRIPT).exists()


NASTY = ['a\nb', 'a\n#SBATCH --uid=0', 'a\rb', 'a\u2028b', 'a\x0bb', 'a\x1bb']
TEXTS = ('name', 'partition', 'account', 'time', 'sbatch', 'setup', 'program')


@pytest.mark.parametrize('text', NASTY)
@pytest.mark.parametrize('option', TEXTS)
def test_no_option_can_add_a_line_to_the_script(option, text):
  with pytest.raises(
    ValueError, match=f'--{option}=.*(line breaks|time limit)'
  ):
    slurm.main(['--dry_run', f'--{option}={text}', '--', '--workdir=/r'])


@pytest.mark.parametrize('text', NASTY)
def test_no_folder_can_add_a_line_to_the_script(text):
  with pytest.raises(ValueError, match='line breaks'):
    slurm.main(['--dry_run', '--', f'--workdir=/r/{text}'])


@pytest.mark.parametrize('option', ['name', 'partition', 'account'])
def test_quotes_and_spaces_stay_one_word(capsys, option):
  text = """it's "a" $HOME; # `b`"""
  found = directives(capsys, f'--{option}={text}')
  long = {'name': 'job-name'}.get(option, option)
  (line,) = [x for x in found if x.startswith(f'--{long}=')]
  assert shlex.split(line) == [f'--{long}={text}']


def test_a_run_of_other_flags_is_found_before_it_is_submitted(tmp_path, fakes):
  own = ['--program=program', '--', f'--workdir={tmp_path}']
  (tmp_path / 'flags.txt').write_text(
    flags.to_text(config.from_values({'seed': 3}))
  )
  with pytest.raises(ValueError, match='--seed=3'):
    slurm.main(own)
  assert not fakes.exists()
  assert slurm.main([*own, '--seed=3']) == 0
