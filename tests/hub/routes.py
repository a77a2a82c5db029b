"""Which function answers which path."""

from __future__ import annotations

from collections.abc import Callable

from tests.hub.call import Answer, Call
from tests.hub.commits import make_commit
from tests.hub.lfs import complete, lfs_batch, lfs_verify, preupload, put_object, put_part
from tests.hub.listings import commits, get_object, paths_info, resolve, tree
from tests.hub.repositories import (
    create_repo,
    delete_repo,
    info,
    no_such_repo,
    settings,
    validate_yaml,
    whoami,
)
from tests.hub.revisions import (
    change_discussion,
    create_discussion,
    create_ref,
    delete_ref,
    discussion,
    discussions,
    refs,
)
from tests.hub.xet_routes import (
    get_xorb,
    known_chunk,
    put_shard,
    put_xorb,
    reconstruction,
    xet_token,
)

API = r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
PAGE = r"/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)"
REV = r"(?P<rev>[^/]+)"
SHA = r"(?P<sha>[0-9a-f]+)"

Route = tuple[str, str, Callable[[Call], Answer]]
ROUTES: list[Route] = [
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("POST", "/api/repos/create", create_repo),
    ("DELETE", "/api/repos/delete", delete_repo),
    ("GET", API, info),
    ("GET", f"{API}/revision/{REV}", info),
    ("PUT", f"{API}/settings", settings),
    ("GET", f"{API}/refs", refs),
    ("POST", f"{API}/(?P<what>tag|branch)/{REV}", create_ref),
    ("DELETE", f"{API}/(?P<what>tag|branch)/{REV}", delete_ref),
    ("POST", f"{API}/discussions", create_discussion),
    ("GET", f"{API}/discussions", discussions),
    ("GET", rf"{API}/discussions/(?P<num>\d+)", discussion),
    ("POST", rf"{API}/discussions/(?P<num>\d+)/(?P<what>merge|status)", change_discussion),
    ("POST", f"{API}/preupload/{REV}", preupload),
    ("POST", f"{API}/commit/{REV}", make_commit),
    ("GET", f"{API}/xet-(?P<what>read|write)-token/{REV}", xet_token),
    ("GET", f"{API}/tree/{REV}(?:/(?P<path>.*))?", tree),
    ("POST", f"{API}/paths-info/{REV}", paths_info),
    ("GET", f"{API}/commits/{REV}", commits),
    ("GET", "/api/(models|datasets)/[^/]+(/revision/[^/]+)?", no_such_repo),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/batch", lfs_batch),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/verify", lfs_verify),
    ("GET", f"{PAGE}/resolve/{REV}/(?P<path>.+)", resolve),
    ("GET", f"/objects/{SHA}", get_object),
    ("PUT", f"/objects/{SHA}", put_object),
    ("PUT", rf"/parts/{SHA}/(?P<num>\d+)", put_part),
    ("POST", f"/complete/{SHA}", complete),
    ("POST", f"/v1/xorbs/default/{SHA}", put_xorb),
    ("POST", "/v[12]/shards", put_shard),
    ("GET", f"/v1/chunks/[^/]+/{SHA}", known_chunk),
    ("GET", f"/v1/reconstructions/{SHA}", reconstruction),
    ("GET", f"/xorbs/{SHA}", get_xorb),
]
