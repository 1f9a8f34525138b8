"""The client for threads, made from `_async` by `python clients/unasynced.py`, all but `_waiting.py`."""
