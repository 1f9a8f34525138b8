"""HTTP for whoever cannot use gRPC or Python: rerank interfaces that the ecosystem speaks, and our own by item ids.

    python -m gateway --server localhost:8001 --key-file gateway.keys

Stateless: it checks the key and the limits, asks the ranker through the asyncio client, and answers in the form of the
interface that was asked, errors too. Knows nothing of how a ranker is built, published or served.
"""
