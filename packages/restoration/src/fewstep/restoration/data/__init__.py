"""Training and evaluation data of restoration.

What a person sets: :mod:`.settings`. Pictures, or pairs of them: :mod:`.examples`; from folders :mod:`.folder`, lists
:mod:`.lists`, paired folders :mod:`.pairs`; found and split by :mod:`.opening`. Crops: :mod:`.crops`. Batches:
:mod:`.source`.
"""
