"""Every process finds the same coordinator and a place of its own."""

import pytest

from fedms_jax.cluster import distributed, host
from fedms_jax.cluster.host import Membership


def find(environment, coordinator='', processes=0, process_id=-1):
  return host.membership(coordinator, processes, process_id, environment)


def slurm(process, *, tasks='2(x2)', nodes='n[07-08]', **more):
  """What srun gives a task on the second of two nodes."""
  return {
    'SLURM_JOB_ID': '4097',
    'SLURM_NTASKS': '4',
    'SLURM_STEP_NUM_TASKS': '4',
    'SLURM_STEP_NODELIST': nodes,
    'SLURM_STEP_TASKS_PER_NODE': tasks,
    'SLURM_NODEID': str(process // 2),
    'SLURM_PROCID': str(process),
    'SLURM_LOCALID': str(process % 2),
  } | more


def kubernetes(process):
  return {
    'FEDMS_COORDINATOR': 'run-0.run:61440',
    'FEDMS_PROCESSES': '4',
    'JOB_COMPLETION_INDEX': str(process),
  }


def tpu(process):
  return {
    'TPU_WORKER_HOSTNAMES': 't0,t1,t2,t3',
    'TPU_WORKER_ID': str(process),
  }


def by_flags(process):
  return {'coordinator': 'a:1', 'processes': 4, 'process_id': process}


@pytest.mark.parametrize(
  ('places', 'coordinator'),
  [
    ([find({}, **by_flags(i)) for i in range(4)], 'a:1'),
    ([find(slurm(i), **by_flags(i)) for i in range(4)], 'a:1'),
    ([find(slurm(i)) for i in range(4)], 'n07:61441'),
    (
      [find(slurm(i, JAX_COORDINATOR_PORT='9')) for i in range(4)],
      'n07:9',
    ),
    ([find(kubernetes(i)) for i in range(4)], 'run-0.run:61440'),
    ([find(tpu(i)) for i in range(4)], 't0:61440'),
  ],
  ids=['flags', 'flags first', 'slurm', 'slurm port', 'kubernetes', 'tpu'],
)
def test_all_agree_and_each_has_its_own_number(places, coordinator):
  assert [p[:3] for p in places] == [(coordinator, 4, i) for i in range(4)]


@pytest.mark.parametrize(
  'environment',
  [
    {},
    # a batch script, and a shell of salloc, of a job of four tasks
    {'SLURM_JOB_ID': '1', 'SLURM_NTASKS': '4', 'SLURM_PROCID': '0'},
    slurm(0, SLURM_STEP_NUM_TASKS='1'),
    {'FEDMS_PROCESSES': '1'},
    {'JOB_COMPLETION_INDEX': '3'},
    {'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_WORKER_ID': '0'},
  ],
)
def test_without_peers_a_process_is_alone(environment):
  assert find(environment) == Membership()


def test_one_process_by_flag_is_alone_whatever_the_scheduler_says():
  for environment in (slurm(3), kubernetes(3), tpu(3)):
    assert find(environment, processes=1) == Membership()


@pytest.mark.parametrize(
  ('nodes', 'first'),
  [
    ('login', 'login'),
    ('a,b', 'a'),
    ('n[001-004]', 'n001'),
    ('n[3,7-9],other', 'n3'),
    ('rack[2,4-5]n[01-16]-ib,login', 'rack2n01-ib'),
    ('127.0.0.[1-2]', '127.0.0.1'),
  ],
)
def test_first_host_of_a_node_list(nodes, first):
  assert host.first_host(nodes) == first


@pytest.mark.parametrize('nodes', ['', 'n[1-2', 'n1-2]', ',a', 'n[]'])
def test_what_is_no_node_list_is_an_error(nodes):
  with pytest.raises(ValueError, match='no list of nodes'):
    host.first_host(nodes)


def devices(tasks, visible=None, count=2):
  """The devices of the tasks of one node."""
  more = {} if visible is None else {'CUDA_VISIBLE_DEVICES': visible}
  return [
    find(slurm(i, tasks=tasks, SLURM_NODEID='0', **more)).devices
    for i in range(count)
  ]


def test_tasks_of_a_node_divide_the_accelerators_that_all_of_them_see():
  assert devices('2(x2)', '0,1') == [(0,), (1,)]
  assert devices('2,1(x2)', '4,5,6,7') == [(0, 1), (2, 3)]
  assert devices('2(x2)') == [(0,), (1,)]


def test_a_task_uses_all_that_it_sees_where_others_see_none_of_it():
  assert devices('2(x2)', '0') == [None, None]  # bound by SLURM
  assert devices('1(x4)', '0,1,2,3', count=1) == [None]  # one per node


@pytest.mark.parametrize(
  ('environment', 'flags', 'parts'),
  [
    ({}, {'coordinator': 'a:1'}, ['`processes`']),
    ({}, {'process_id': 1}, ['`processes`']),
    ({}, {'processes': 2, 'coordinator': 'a:1'}, ['-1', '0 to 1']),
    ({}, {**by_flags(4)}, ['4', '0 to 3']),
    ({}, {'processes': 2, 'process_id': 0}, ["''", 'host:port']),
    ({}, {**by_flags(0), 'coordinator': 'host'}, ["'host'", 'host:port']),
    ({}, {**by_flags(0), 'coordinator': 'a:99999'}, ['a:99999']),
    ({}, {'processes': 1, 'process_id': 1}, ['0 to 0']),
    (slurm(0, SLURM_PROCID='x'), {}, ['SLURM_PROCID', "'x'"]),
    (slurm(0, SLURM_PROCID='4'), {}, ['SLURM', '0 to 3']),
    (slurm(0, tasks='two'), {}, ["'two'", '2(x3),1']),
    ({'FEDMS_PROCESSES': '2'}, {}, ['Kubernetes', 'FEDMS_COORDINATOR']),
    ({'FEDMS_PROCESSES': 'two'}, {}, ['FEDMS_PROCESSES', "'two'"]),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, {}, ['TPU_WORKER_ID']),
  ],
)
def test_what_is_incomplete_is_an_error_that_names_it(
  environment, flags, parts
):
  with pytest.raises(ValueError) as error:
    find(environment, **flags)
  for part in parts:
    assert part in str(error.value)


@pytest.mark.parametrize(
  ('coordinator', 'local'),
  [
    ('127.0.0.1:61440', True),
    ('127.8.8.8:1', True),
    ('localhost:1', True),
    ('[::1]:1', True),
    ('10.0.0.1:61440', False),
    ('node1:61440', False),
    ('localhost.example.org:1', False),
  ],
)
def test_a_run_of_one_machine_is_offered_to_no_other(coordinator, local):
  found = distributed.bind_address(coordinator)
  assert found == (coordinator if local else None)
