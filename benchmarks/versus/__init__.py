"""annbatch and other loaders side by side: ``python -m benchmarks.versus``.

One run makes the data and the other packages' environments, measures every case in ``cases.py`` and writes a table, a plot and
all single figures. Each measurement is a fresh process that runs one script of ``workers/`` with one side's interpreter, so
packages that share an import name never meet, and nothing but a package's public interface is used.
"""
