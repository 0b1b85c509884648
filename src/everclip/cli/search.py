"""everclip search: find the nearest embeddings of a folder to a text or a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from everclip.cli._options import Json
from everclip.errors import UserError, check_range
from everclip.system.text import json_text, printable


def search(
    vectors: str,
    *queries: str,
    k: Annotated[int, Parameter(name=["-k", "--k"])] = 10,
    model: str | None = None,
    json: Json = False,
) -> None:
    """Find the embeddings nearest to a text or a picture by exact cosine similarity; one line each, nearest first.

    Args:
        vectors: A folder that everclip embed wrote.
        queries: Texts, or files of pictures.
        k: Number of embeddings to find.
        model: The encoder for the queries (default: the one that the folder names).
    """
    if not queries:
        raise UserError(f'everclip search needs a query: use everclip search {vectors} "a red bicycle"')
    check_range("-k", k, 1, 1_000_000)
    from everclip.index.folder import read
    from everclip.index.queries import asker, kind_of
    from everclip.index.search import nearest

    kinds = [kind_of(query) for query in queries]
    there = read(Path(vectors).expanduser())
    if not len(there):
        raise UserError(f"{vectors} has no embeddings yet: use everclip embed MODEL DATA -o {vectors}")
    asking = asker(there, model)
    for query, kind in zip(queries, kinds, strict=True):
        cosines, rows = nearest(there, asking.embed(query), k)
        names = there.names(rows[0].tolist())
        hits = list(zip(names, cosines[0].tolist(), strict=True))
        if json:
            found = [{"id": name, "cosine": round(cosine, 6)} for name, cosine in hits]
            print(json_text({"query": query, "kind": kind, "found": found}, None))
            continue
        start = f"{printable(query)}\t" if len(queries) > 1 else ""
        for name, cosine in hits:
            print(f"{start}{cosine:.4f}\t{printable(name)}")
