"""Options that are accepted only so that existing scripts run; none of them changes what comes out.

========================  =====================================  =========================================================
option                    where                                  why it does nothing
========================  =====================================  =========================================================
``cache_categories``      ``MappedCollection``                   categories are one object each, not per row: always kept
``parallel``              ``MappedCollection``                   a process never uses a handle that another one opened
``torch_worker_init_fn``  ``MappedCollection``                   workers open their own handles at the first read
``shuffle_chunk_size``    ``DatasetCollection.add_adatas``       every row is shuffled by itself
========================  =====================================  =========================================================

``to_torch`` (Loader), ``rng`` as an integer seed (samplers), ``n_iters`` (samplers; use ``n_batches``) and ``obs_filter`` as a
pair (MappedCollection) do have a meaning; they warn and name what to write instead.
"""
