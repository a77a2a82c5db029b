"""Routes: branches, tags, pull requests."""

from __future__ import annotations

import json
import uuid
from typing import Any
from urllib.parse import unquote

from tests.hub.call import Answer, Call
from tests.hub.records import Refused, Repository, now
from tests.hub.state import USER


def refs(call: Call) -> Answer:
    repo = call.repo()

    def named(prefix: str, heads: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": n, "ref": prefix + n, "targetCommit": id} for n, id in heads.items()]

    said: dict[str, Any] = {
        "branches": named("refs/heads/", repo.branches),
        "converts": [],
        "tags": named("refs/tags/", repo.tags),
    }
    if call.flag("include_prs"):
        pulls = {str(pull["num"]): pull["head"] for pull in repo.pulls}
        said["pullRequests"] = named("refs/pr/", pulls)
    return Answer(said)


def create_ref(call: Call) -> Answer:
    wish = call.json() or {}
    with call.store.lock:
        repo = call.repo(write=True)
        if call.names["what"] == "tag":
            heads, name, start = repo.tags, wish["tag"], unquote(call.names["rev"])
            if name not in heads:
                repo.tag_messages[name] = wish.get("message") or ""
        else:
            heads, name = repo.branches, unquote(call.names["rev"])
            start = wish.get("startingPoint") or "main"
        if name in heads:
            raise Refused(409, f"{call.names['what']} {name!r} exists already")
        heads[name] = call.store.resolve(repo, start).id
        call.store.save(repo)
    return Answer({})


def delete_ref(call: Call) -> Answer:
    with call.store.lock:
        repo = call.repo(write=True)
        heads = repo.tags if call.names["what"] == "tag" else repo.branches
        name = unquote(call.names["rev"])
        if name not in heads:
            raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
        if heads is repo.branches and name == "main":
            raise Refused(403, "the default branch cannot be deleted")
        del heads[name]
        call.store.save(repo)
    return Answer({})


def open_pull(repo: Repository, title: str, base: str, head: str) -> dict[str, Any]:
    """Add a pull request: a draft as long as nothing was committed to it."""
    pull = {
        "num": len(repo.pulls) + 1, "title": title, "status": "draft" if base == head else "open",
        "created": now(), "base": base, "head": head, "merged": None,
    }  # fmt: skip
    repo.pulls.append(pull)
    return pull


def create_discussion(call: Call) -> Answer:
    wish = call.json()
    if not wish.get("pullRequest"):
        raise Refused(400, "this hub has pull requests, but no other discussions")
    with call.store.lock:
        repo = call.repo(write=True)
        main = repo.branches["main"]
        pull = open_pull(repo, wish["title"], main, main)
        call.store.save(repo)
    return Answer({"num": pull["num"], "url": f"{call.url(repo)}/discussions/{pull['num']}"})


def described_pull(call: Call, repo: Repository, pull: dict[str, Any]) -> dict[str, Any]:
    return {
        "num": pull["num"],
        "title": pull["title"],
        "status": pull["status"],
        "author": {"name": USER},
        "createdAt": pull["created"],
        "isPullRequest": True,
        "repo": {"name": repo.id, "type": repo.kind[:-1]},
        "events": [],  # our choice: the opening comment and the pushes are not told again
        "filesWithConflicts": [],
        "changes": {"base": "refs/heads/main", "mergeCommitId": pull["merged"]},
        "diff": "",
    }


def find_pull(call: Call, repo: Repository) -> dict[str, Any]:
    for pull in repo.pulls:
        if str(pull["num"]) == call.names["num"]:
            return pull
    raise Refused(404, "no such discussion")


def discussions(call: Call) -> Answer:
    repo = call.repo()
    listed = [described_pull(call, repo, pull) for pull in reversed(repo.pulls)]
    return Answer({"discussions": listed, "count": len(listed), "start": 0})


def discussion(call: Call) -> Answer:
    repo = call.repo()
    return Answer(described_pull(call, repo, find_pull(call, repo)))


def change_discussion(call: Call) -> Answer:
    wish = json.loads(b"".join(call.chunks) or b"{}") or {}
    with call.store.lock:
        repo = call.repo(write=True)
        pull = find_pull(call, repo)
        if call.names["what"] == "merge":
            base, head = (call.store.read_commit(repo, pull[k]).files for k in ("base", "head"))
            files = dict(call.store.resolve(repo, "main").files)
            for path in base.keys() | head.keys():
                if base.get(path) != head.get(path):
                    files.pop(path, None)
                    files |= {path: head[path]} if path in head else {}
            title = f"{pull['title']} (#{pull['num']})"
            made = call.store.commit(repo, repo.branches["main"], title, "", files)
            repo.branches["main"] = pull["merged"] = made.id
            wish = {"status": "merged"}
        pull["status"] = wish["status"]
        call.store.save(repo)
    event: dict[str, Any] = {"id": uuid.uuid4().hex, "createdAt": now(), "type": "status-change"}
    event |= {"author": {"name": USER}, "data": {"status": pull["status"]}}
    return Answer({"newStatus": event})
