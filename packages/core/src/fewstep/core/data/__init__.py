"""Data of text-conditioned models.

Prompts: :mod:`.prompts`. Pictures with captions: :mod:`.captioned` (folders), :mod:`.tars` (webdataset). What a teacher
makes of both, kept on disk: :mod:`.cache`, :mod:`.prepare`. Batches of either: :mod:`.source`.
"""
