"""Other ways to serve the same weights, measured beside ours: ``python -m perf peers``.

A peer is one file: how it is started, and how one request is asked. It runs in an environment of its own, so that file
imports nothing at its top but the standard library, and this package's :mod:`perf.peers.peer`, :mod:`~perf.peers.pairs`
and :mod:`~perf.peers.items`, which import nothing either. What it needs is pinned in ``requirements/``.
"""
