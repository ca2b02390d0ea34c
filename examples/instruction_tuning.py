"""A LLaMA-style model learns to answer its users' kinds of instructions.
python -m examples.instruction_tuning [<folder or Hub id of a model>]"""

import sys

import datasets

import fedms_jax

ROWS = [
  {'text': f'{verb} {a} {b}:', 'answer': f' {rule((a, b))}', 'user': user}
  for user, (verb, rule) in enumerate(4 * [('add', sum), ('larger', max)])
  for a, b in [(i + 50 * (user // 2), 7 * i % 50) for i in range(50)]
]
DATA = {'data_target_column': 'answer', 'data_group_column': 'user'}
DATA['partition'] = {'name': 'natural', 'num_clients': 8, 'unseen_clients': 0}


def main(model='', **options):
  given = DATA | {'model': model or 'llama', 'model_head': 'causal_lm'}
  if not model:  # of random weights, which the server trains first
    given |= {'model_blocks': 2, 'model_width': 32, 'model_heads': 2}
    given |= {'model_tokenizer': 'bytes', 'stages': 'S100,fedms'}
  return fedms_jax.run(data=datasets.Dataset.from_list(ROWS), **given | options)


if __name__ == '__main__':
  print(main(*sys.argv[1:]))
