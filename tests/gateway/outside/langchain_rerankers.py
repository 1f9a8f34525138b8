"""Asks a gateway by LangChain's rerankers, in an environment of its own: URL KEY QUERY TEXTS (JSON) => JSON."""

from __future__ import annotations

import json
import sys

from langchain_cohere import CohereRerank
from langchain_core.documents import Document
from langchain_nvidia_ai_endpoints import NVIDIARerank


def main(url: str, key: str, query: str, texts: list[str]) -> dict[str, object]:
    """Each reranker's texts with their scores."""
    documents = [Document(text) for text in texts]
    by_cohere = CohereRerank(cohere_api_key=key, base_url=url, model="shop", top_n=len(texts))
    by_nvidia = NVIDIARerank(api_key=key, base_url=f"{url}/v1", model="shop", top_n=len(texts))
    return {
        "CohereRerank": pairs(by_cohere.compress_documents(documents, query)),
        "NVIDIARerank": pairs(by_nvidia.compress_documents(documents, query)),
    }


def pairs(documents: list[Document]) -> list[list[object]]:
    return [[document.page_content, document.metadata["relevance_score"]] for document in documents]


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:4], json.loads(sys.argv[4]))))
