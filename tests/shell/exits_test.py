"""How a command ends: a line and a code, or the traceback of a mistake."""

import errno
import os
import pathlib
import subprocess
import sys

import lmdb
import pytest

from fedms_jax.persistence import files
from fedms_jax.shell import exits

ROOT = pathlib.Path(__file__).parents[2]
ENDS = [
  (OSError(errno.ENOSPC, 'full', '/f'), 75),
  (OSError(errno.EFBIG, 'large'), 75),
  (OSError(errno.EMFILE, 'many'), 75),
  (ValueError('I/O error: No space left on device (os error 28)'), 75),
  (RuntimeError('Too many open files'), 75),
  (lmdb.MapFullError('MDB_MAP_FULL'), 75),
  (files.StorageError('the store: Input/output error'), 75),
  (ValueError('--seed=x is no number.'), 2),
  (PermissionError(errno.EACCES, 'no', '/f'), 2),
  (NotADirectoryError(errno.ENOTDIR, 'no', '/f/tensorboard'), 2),
  (KeyboardInterrupt(), 130),
]


@pytest.mark.parametrize(
  ('error', 'code'), ENDS, ids=[repr(e) for e, _ in ENDS]
)
def test_an_error_is_one_line_and_a_code(capsys, error, code):
  def body():
    raise error

  assert exits.code_of(body) == code
  said = capsys.readouterr()
  assert (said.out, said.err.count('\n')) == ('', 1)
  assert said.err.startswith('fedms: ')
  assert ('--resume' in said.err) == (code == 75)


def test_a_mistake_of_the_program_keeps_its_traceback():
  with pytest.raises(KeyError):
    exits.code_of(lambda: {}['x'])


def test_the_code_of_a_command_is_passed_on():
  assert [exits.code_of(lambda c=c: c) for c in (0, 75)] == [0, 75]


def child(body, **kwargs):
  code = (
    'import sys, threading, time\nfrom fedms_jax.shell import exits\n'
    f'exits.own_process()\ndef body():\n{body}\n  return 0\n'
    'sys.exit(exits.code_of(body))\n'
  )
  return subprocess.Popen(
    [sys.executable, '-c', code],
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
    **kwargs,
  )


@pytest.mark.parametrize('flush', [True, False])
def test_who_reads_the_output_may_leave(flush):
  body = (
    '  print("first", flush=True)\n  time.sleep(0.3)\n'
    f'  for _ in range(9999): print("x" * 99, flush={flush})\n'
    '  print("end", file=sys.stderr)'
  )
  process = child(body, stdout=subprocess.PIPE)
  assert process.stdout.readline() == 'first\n'
  process.stdout.close()
  assert process.stderr.read() == 'end\n'
  assert process.wait() == 0


def test_the_progress_bar_may_lose_its_reader(tmp_path):
  body = (
    '  print("go", flush=True)\n  time.sleep(0.3)\n'
    '  import tqdm\n  for _ in tqdm.tqdm(range(99), mininterval=0): pass\n'
    '  print("end")'
  )
  process = child(body, stdout=subprocess.PIPE)
  process.stderr.close()
  assert process.stdout.read() == 'go\nend\n'
  assert process.wait() == 0


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
def test_output_onto_a_full_disk_is_told():
  with open('/dev/full', 'w') as full:
    process = child('  print("x")', stdout=full)
    assert 'No space left' in process.stderr.read()
    assert process.wait() == 75


def test_a_thread_tells_of_a_full_disk_in_one_line():
  body = (
    '  def fail(): raise OSError(28, "No space left on device")\n'
    '  t = threading.Thread(target=fail)\n  t.start()\n  t.join()'
  )
  process = child(body)
  assert process.stderr.read().count('\n') == 1
  process.wait()
