"""A LLaMA-style model learns to answer its users' kinds of instructions.

python -m examples.instruction_tuning"""

import datasets

import fedms_jax

ROWS = [
  {'text': f'{verb} {a} {b}:', 'answer': f' {rule((a, b))}', 'user': user}
  for user, (verb, rule) in enumerate(4 * [('add', sum), ('larger', max)])
  for a, b in [(i + 50 * (user // 2), 7 * i % 50) for i in range(50)]
]
DATA = {'data_target_column': 'answer', 'data_group_column': 'user'}
USERS = {'name': 'natural', 'num_clients': 8, 'unseen_clients': 0}
SMALL = {'blocks': 2, 'width': 32, 'heads': 2, 'tokenizer': 'bytes'}


def main(model='', **options):
  given = DATA | {'model_head': 'causal_lm', 'partition': USERS}
  if not model:  # of random weights, which the server trains first
    model, given['stages'] = 'llama', 'S100,fedms'
    given |= {f'model_{name}': value for name, value in SMALL.items()}
  given['data'] = datasets.Dataset.from_list(ROWS)
  return fedms_jax.run(model=model, **given | options)


if __name__ == '__main__':
  print(main())
