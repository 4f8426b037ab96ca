"""How a collection is built, out of core.

Rows go through two tasks. *Deal*: a block of input rows is read once, in order, and written to a temporary file sorted
by the place each row will have in the output. *Assemble*: one output dataset fetches its rows, which lie together in
every one of those files, puts them in place and writes them. The plan (which row goes where) is made before and is a
function of the seed and the row counts alone, so the result does not depend on memory, threads or machines.

    inputs   what an input file holds, seen as row-aligned fields
    schema   the fields all inputs share, and how each input is fitted to them
    plan     which row goes where; how inputs are cut into blocks
    spill    the temporary file of a block
    deal     the first task
    assemble the second task
    sink     the arrays of a dataset that grow row by row, in Zarr or HDF5
    shards   Zarr shards written as a stream
    journal  the lock, what is finished, what a crash left behind
"""
