"""Stands in for `fedms`: takes its flags, finds its place among its peers,
enters its workdir, and then does what the test tells it.

STAND_IN in the environment is a JSON object: what process 0, 1, ... does; or
a plain action for all. Actions: 'exit CODE', 'die SIGNAL', 'wait' (for a
signal, then exit 75 as if saved), 'run' (write the summary and end; what is
done without any instruction). 'once ...' holds for the first start of a job.
"""

import json
import os
import signal
import sys
import time

from fedms_jax.cluster import host, signals
from fedms_jax.persistence import workdir, writers
from fedms_jax.shell import flags


def action(process):
  told = os.environ.get('STAND_IN', 'run')
  if told.startswith('{'):
    told = json.loads(told).get(str(process), 'run')
  if told.startswith('once '):
    again = int(os.environ.get('SLURM_RESTART_COUNT', 0))
    told = 'run' if again else told.removeprefix('once ')
  return told.split()


def obey(verb, *words):
  """Does what the test wants; gives the exit code."""
  if verb == 'exit':
    return int(words[0])
  if verb == 'die':
    os.kill(os.getpid(), getattr(signal, words[0]))
  with signals.StopRequest() as stop:
    print('ready', flush=True)
    end = time.monotonic() + 60  # if the test that started it has failed
    while verb == 'wait' and not stop.requested() and time.monotonic() < end:
      time.sleep(0.02)
  if verb != 'wait':
    return 0
  time.sleep(0.5)  # saving takes its time
  print('saved', flush=True)
  return signals.EXIT_SAVED


def main():
  config = flags.parse(sys.argv)
  d = config.distributed
  place = host.membership(d.coordinator, d.processes, d.process_id, os.environ)
  print(f'place {json.dumps(place)} timeout {d.timeout}', flush=True)
  if config.workdir and place.process_id == 0:
    text = flags.to_text(config)
    with workdir.Workdir.open(
      config.workdir, text, config.resume, config.break_lock
    ) as folder:
      folder.begin()
      code = obey(*action(0))
      if code == 0:
        scores = {'mixture': {'own_mean': config.seed / 10, 'pooled': None}}
        total = {'bytes_up': config.lora.rank * 1000}
        writers.write_summary(
          folder.summary, {'models': scores, 'total': total}
        )
    return code
  return obey(*action(place.process_id))


if __name__ == '__main__':
  try:
    sys.exit(main())
  except ValueError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
