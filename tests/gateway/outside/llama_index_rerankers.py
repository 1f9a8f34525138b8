"""Asks a gateway by LlamaIndex' rerankers, in an environment of its own: URL KEY QUERY TEXTS (JSON) => JSON."""

from __future__ import annotations

import json
import sys

from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference


def main(url: str, key: str, query: str, texts: list[str]) -> dict[str, object]:
    """Each reranker's texts with their scores."""
    by_cohere = CohereRerank(api_key=key, base_url=url, model="shop", top_n=len(texts))
    by_tei = TextEmbeddingInference(base_url=url, top_n=len(texts), auth_token=f"Bearer {key}")
    return {
        "CohereRerank": pairs(by_cohere.postprocess_nodes(nodes(texts), query_str=query)),
        "TextEmbeddingInference": pairs(by_tei.postprocess_nodes(nodes(texts), query_str=query)),
    }


def nodes(texts: list[str]) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text), score=0.0) for text in texts]


def pairs(found: list[NodeWithScore]) -> list[list[object]]:
    return [[node.text, node.score] for node in found]


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:4], json.loads(sys.argv[4]))))
