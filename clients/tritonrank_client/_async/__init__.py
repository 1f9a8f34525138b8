"""The asyncio client. `_sync` is made from it: `python -m clients.unasynced`; change only this one."""
