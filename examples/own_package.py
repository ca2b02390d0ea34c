"""A method from a package of your own, trained, resumed, evaluated, exported.

python -m examples.own_package
"""

import os
import subprocess
import sys


def fedms(*words):
  """The command, in the folder of the package."""
  command = [sys.executable, '-m', 'fedms_jax', *words]
  path = os.pathsep.join(['.', os.environ.get('PYTHONPATH', '')])
  subprocess.run(command, check=True, env=os.environ | {'PYTHONPATH': path})


def main(folder='my_method', *flags):
  fedms('new', folder)
  os.chdir(folder)
  name, run = os.path.basename(folder), '--workdir=runs/a'
  fedms(f'--plugin={name}', f'--algorithm.name={name}', run, *flags)
  for words in (['eval'], ['report'], ['list', f'--plugin={name}']):
    fedms(*words, *([] if words[0] == 'list' else [run]))
  fedms('--flagfile=runs/a/flags.txt', run, '--resume')


if __name__ == '__main__':
  main(*sys.argv[1:])
