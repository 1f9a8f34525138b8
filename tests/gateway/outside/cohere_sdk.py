"""Asks a gateway by Cohere's SDK, in an environment of its own: URL KEY QUERY TEXTS (JSON) => JSON."""

from __future__ import annotations

import asyncio
import json
import sys

import cohere


def main(url: str, key: str, query: str, texts: list[str]) -> dict[str, object]:
    """Each client's texts with their scores, and the class of each error."""
    asked = {"model": "shop", "query": query, "documents": texts}
    first = cohere.Client(api_key=key, base_url=url)
    second = cohere.ClientV2(api_key=key, base_url=url)
    unknown = cohere.ClientV2(api_key="x" * 32, base_url=url)
    with_documents = first.rerank(**asked, return_documents=True, top_n=2)
    return {
        "v1": pairs(first.rerank(**asked), texts),
        "v2": pairs(second.rerank(**asked), texts),
        "async v2": asyncio.run(asked_async(url, key, asked, texts)),
        "top 2": [[result.document.text, result.relevance_score] for result in with_documents.results],
        "version": second.rerank(**asked).meta.api_version.version,
        "errors": [
            error_of(lambda: unknown.rerank(**asked)),
            error_of(lambda: second.rerank(**{**asked, "model": "none"})),
            error_of(lambda: second.rerank(**{**asked, "documents": []})),
            error_of(lambda: second.rerank(**asked, max_tokens_per_doc=7)),
        ],
    }


async def asked_async(url: str, key: str, asked: dict, texts: list[str]) -> list[list[object]]:
    async with cohere.AsyncClientV2(api_key=key, base_url=url) as client:
        return pairs(await client.rerank(**asked), texts)


def pairs(answer: object, texts: list[str]) -> list[list[object]]:
    return [[texts[result.index], result.relevance_score] for result in answer.results]


def error_of(ask: object) -> str:
    try:
        ask()
    except cohere.core.ApiError as error:
        return f"{type(error).__name__} {error.status_code} {error.body['message'][:20]}"
    return "none"


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:4], json.loads(sys.argv[4]))))
