"""The principal that an access key belongs to, and its policies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from urllib.parse import unquote

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Principal:
    """A principal and its policies."""

    arn: str
    account: str
    root: bool = False
    policies: tuple[Document, ...] = ()
    boundary: Document | None = None
    session: Document | None = None
    names: frozenset[str] = field(default_factory=frozenset)
    context: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class UnknownKey(Exception):
    """No user or role has this access key."""


class Directory:
    """Finds principals in moto's IAM and STS."""

    def __init__(self, account: str, root_key: str, partition: str = "aws") -> None:
        self._account = account
        self._partition = partition
        self._root_key = root_key

    @property
    def _iam(self) -> Any:
        from moto.iam.models import iam_backends

        return iam_backends[self._account][self._partition]

    def by_key(self, access_key: str) -> Principal:
        """The principal that the key belongs to. Raises UnknownKey."""
        if access_key == self._root_key:
            return self.root()
        from moto.sts.models import sts_backends

        for session in sts_backends[self._account][self._partition].assumed_roles:
            if session.access_key_id == access_key:
                if session.expiration < datetime.now(timezone.utc).replace(tzinfo=None):
                    raise UnknownKey("The security token included in the request is expired")
                role = self.role(session.role_arn, session.session_name)
                if role is None:
                    break
                return _with_session(role, session.policy)
        for user in list(self._iam.users.values()):
            if any(key.access_key_id == access_key and key.status == "Active" for key in user.access_keys):
                return self._user(user)
        raise UnknownKey("The security token included in the request is invalid.")

    def root(self) -> Principal:
        arn = f"arn:{self._partition}:iam::{self._account}:root"
        return Principal(arn, self._account, root=True, names=frozenset({arn, self._account}))

    def role(self, arn: str, session: str = "SageMaker") -> Principal | None:
        """The principal of a session of the role; None when there is no such role."""
        role = next((r for r in list(self._iam.roles.values()) if r.arn == arn), None)
        if role is None:
            return None
        attached = [_default_version(p) for p in role.managed_policies.values()]
        inline = [parsed_document(document) for document in role.policies.values()]
        me = f"arn:{self._partition}:sts::{self._account}:assumed-role/{role.name}/{session}"
        names = {me, role.arn, self._account, f"arn:{self._partition}:iam::{self._account}:root"}
        return Principal(
            me,
            self._account,
            policies=tuple(inline + attached),
            boundary=self._boundary(role.permissions_boundary_arn),
            names=frozenset(names),
            context={"aws:principalarn": (role.arn,), "aws:userid": (f"{role.id}:{session}",)},
        )

    def trust(self, arn: str) -> Document | None:
        """The role's trust policy; None when there is no such role."""
        role = next((r for r in list(self._iam.roles.values()) if r.arn == arn), None)
        return None if role is None else parsed_document(role.assume_role_policy_document)

    def _user(self, user: Any) -> Principal:
        documents = [parsed_document(document) for document in user.policies.values()]
        documents += [_default_version(p) for p in user.managed_policies.values()]
        for group in list(self._iam.groups.values()):
            if user in group.users:
                documents += [parsed_document(document) for document in group.policies.values()]
                documents += [_default_version(p) for p in group.managed_policies.values()]
        return Principal(
            user.arn,
            self._account,
            policies=tuple(documents),
            boundary=self._boundary(getattr(user, "permissions_boundary_arn", None)),
            names=frozenset({user.arn, self._account, f"arn:{self._partition}:iam::{self._account}:root"}),
            context={
                "aws:principalarn": (user.arn,),
                "aws:userid": (user.id,),
                "aws:username": (user.name,),
            },
        )

    def _boundary(self, arn: str | None) -> Document | None:
        if not arn:
            return None
        policy = self._iam.managed_policies.get(arn)
        return _default_version(policy) if policy is not None else {"Statement": []}


def _with_session(principal: Principal, document: str | None) -> Principal:
    if not document:
        return principal
    from dataclasses import replace

    return replace(principal, session=parsed_document(document))


def parsed_document(document: Any) -> Document:
    text = unquote(document) if isinstance(document, str) and document.lstrip().startswith("%7B") else document
    parsed: Document = json.loads(text) if isinstance(text, str) else text
    return parsed


def _default_version(managed: Any) -> Document:
    version = next(v for v in managed.versions if v.version_id == managed.default_version_id)
    return parsed_document(version.document)
