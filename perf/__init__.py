"""What is served, measured: quality, load, the figures to reach, and the report. Drives what users drive.

`python -m perf --help`.
"""
