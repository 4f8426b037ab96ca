"""How a collection is built, out of core.

Rows go through two tasks. *Deal*: a block of input rows is read once, in order, and written to a temporary file sorted
by the place each row will have in the output. *Assemble*: one output dataset fetches its rows, which lie together in
every one of those files, puts them in place and writes them. The plan (which row goes where) is made before and is a
function of the seed, the row counts and the ``groupby`` columns alone, so the result does not depend on memory, threads or
machines.

    build       a whole call, in five steps: look, plan, deal, assemble, put in place
    options     what a call asks for, and where its datasets go
    look        what the inputs hold, every clash found
    known       inputs that the collection holds already
    schema      the fields all inputs share, and how each input is fitted to them; schema_file: as tasks read it
    fields      row-aligned data of every kind; columns: those of obs; interning: one object for equal ones
    plan        which row goes where; how inputs are cut into blocks; how memory is shared out
    tasks       running them, here or elsewhere
    deal        the first task
    spill       the temporary file of a block
    assemble    the second task
    rows        the rows of a dataset, fetched from the blocks
    journal     the lock, which call writes, what a crash left behind
    generation  the folder of one call; files: what is on the disk, replaced in one step, locked
    inputs/     an input seen as row-aligned fields
    output/     the arrays of a dataset that grow row by row, in Zarr or HDF5; shards written as a stream
    single      one AnnData, as it is
    warn        warnings that point at the caller's line
"""
