"""Recipes, folders, judged requests with their first stage, and the endpoints' tensors by name. Imports no torch."""

from __future__ import annotations

from builders.core.contract import (
    CONTEXT,
    ENDPOINTS,
    HISTORY,
    ITEM_IDS,
    MAX_CANDIDATES,
    QUERY,
    RECOMMEND,
    USER_ID,
    USUAL_CANDIDATES,
    padded_length,
)
from builders.core.files import fingerprint, sha256, write_atomically
from builders.core.recipe import Recipe, Serving, Variant, load_recipe, load_recipes
from builders.core.workspace import PROJECT, REPOSITORY_ROOT, Workspace
from builders.data.beir import GRADES, JudgedQueries, Product, Request, judged_folder, load_judged, write_judged
from builders.data.bm25 import first_stage
from builders.data.evaluation import evaluation_data, judging_queries
from builders.data.find import DatasetError, DataSource, find_data
from builders.data.synthetic import write_generated

__all__ = [
    "CONTEXT",
    "ENDPOINTS",
    "GRADES",
    "HISTORY",
    "ITEM_IDS",
    "MAX_CANDIDATES",
    "PROJECT",
    "QUERY",
    "RECOMMEND",
    "REPOSITORY_ROOT",
    "USER_ID",
    "USUAL_CANDIDATES",
    "DataSource",
    "DatasetError",
    "JudgedQueries",
    "Product",
    "Recipe",
    "Request",
    "Serving",
    "Variant",
    "Workspace",
    "evaluation_data",
    "find_data",
    "fingerprint",
    "first_stage",
    "judged_folder",
    "judging_queries",
    "load_judged",
    "load_recipe",
    "load_recipes",
    "padded_length",
    "sha256",
    "write_atomically",
    "write_generated",
    "write_judged",
]
