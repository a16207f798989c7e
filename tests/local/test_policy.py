"""IAM policy documents, judged: what AWS's documentation says of each element, in small examples."""

from __future__ import annotations

from typing import Any

import pytest

from mme.local.iam.policy import Request, judge

BUCKET = "arn:aws:s3:::models"


def verdict(
    *statements: dict[str, Any], action: str = "s3:GetObject", resource: str | None = f"{BUCKET}/a", **more: Any
) -> str:
    return judge([{"Statement": list(statements)}], Request(action, resource, **more))


def allow(**more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*", **more}


def deny(**more: Any) -> dict[str, Any]:
    return {**allow(**more), "Effect": "Deny"}


def test_nothing_says_nothing() -> None:
    assert judge([], Request("s3:GetObject", "x")) == "none"


def test_a_statement_need_not_be_in_a_list() -> None:
    assert judge([{"Statement": allow()}], Request("s3:GetObject", "x")) == "allow"


def test_deny_wins_wherever_it_stands() -> None:
    assert verdict(allow(), deny()) == "deny"
    assert verdict(deny(), allow()) == "deny"
    assert judge([{"Statement": allow()}, {"Statement": deny()}], Request("s3:GetObject", "x")) == "deny"


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("s3:GetObject", True),
        ("S3:getobject", True),
        ("s3:Get*", True),
        ("s3:?etObject", True),
        ("*", True),
        ("s3:GetObjec", False),
        ("s3:GetObjectVersion", False),
        ("s3.GetObject", False),
    ],
)
def test_actions(pattern: str, matches: bool) -> None:
    assert verdict(allow(Action=pattern)) == ("allow" if matches else "none")
    assert verdict(allow(Action=["ec2:*", pattern])) == ("allow" if matches else "none")
    other = {"Effect": "Allow", "NotAction": pattern, "Resource": "*"}
    assert verdict(other) == ("none" if matches else "allow")


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        (f"{BUCKET}/*", True),
        (f"{BUCKET}/?", True),
        ("*", True),
        (f"{BUCKET}/a", True),
        (BUCKET, False),
        (f"{BUCKET}/A", False),
        (f"{BUCKET}/a/*", False),
        ("arn:aws:s3:::model./a", False),
    ],
)
def test_resources(pattern: str, matches: bool) -> None:
    assert verdict(allow(Resource=pattern)) == ("allow" if matches else "none")
    assert verdict({"Effect": "Allow", "Action": "*", "NotResource": pattern}) == ("none" if matches else "allow")


def test_a_resource_that_is_not_known() -> None:
    assert verdict(allow(Resource=f"{BUCKET}/x"), resource=None) == "allow"
    assert verdict(deny(Resource=f"{BUCKET}/x"), resource=None) == "none"
    assert verdict(deny(), resource=None) == "deny"


@pytest.mark.parametrize(
    ("operator", "wanted", "actual", "met"),
    [
        ("StringEquals", "a", ["a"], True),
        ("StringEquals", ["a", "b"], ["b"], True),
        ("StringEquals", "a", ["A"], False),
        ("StringEquals", "a", None, False),
        ("StringNotEquals", "a", ["b"], True),
        ("StringNotEquals", ["a", "b"], ["b"], False),
        ("StringNotEquals", "a", None, True),
        ("StringEqualsIgnoreCase", "a", ["A"], True),
        ("StringNotEqualsIgnoreCase", "a", ["A"], False),
        ("StringLike", "team-a/*", ["team-a/bert.tar.gz"], True),
        ("StringLike", "team-a/*", ["team-b/bert.tar.gz"], False),
        ("StringLike", "team-a/*", ["team-ab/x"], False),
        ("StringNotLike", "team-a/*", ["team-b/x"], True),
        ("StringEqualsIfExists", "a", None, True),
        ("StringEqualsIfExists", "a", ["b"], False),
        ("Null", "true", None, True),
        ("Null", "true", ["*"], False),
        ("Null", "false", ["*"], True),
        ("Null", True, None, True),
        ("Bool", "false", ["false"], True),
        ("Bool", False, ["false"], True),
        ("Bool", "false", None, False),
        ("BoolIfExists", "false", None, True),
        ("NumericLessThan", "10", ["9"], True),
        ("NumericLessThan", 10, ["10"], False),
        ("NumericGreaterThanEquals", "10", ["10"], True),
        ("NumericNotEquals", "10", ["11"], True),
        ("DateLessThan", "2026-01-01T00:00:00Z", ["2025-12-31T23:59:59Z"], True),
        ("DateGreaterThan", "2026-01-01T00:00:00Z", ["2025-12-31T23:59:59Z"], False),
        ("IpAddress", "127.0.0.0/8", ["127.0.0.1"], True),
        ("NotIpAddress", "127.0.0.0/8", ["127.0.0.1"], False),
        ("ArnLike", "arn:aws:iam::*:role/ml-*", ["arn:aws:iam::123456789012:role/ml-x"], True),
        ("ArnNotEquals", "arn:aws:iam::1:role/a", ["arn:aws:iam::1:role/b"], True),
        ("ForAllValues:StringEquals", ["a", "b"], ["a", "b"], True),
        ("ForAllValues:StringEquals", ["a", "b"], ["a", "c"], False),
        ("ForAllValues:StringEquals", "a", None, True),
        ("ForAnyValue:StringEquals", "a", ["c", "a"], True),
        ("ForAnyValue:StringEquals", "a", None, False),
        ("ForAnyValue:StringNotEquals", "a", ["a", "b"], True),
    ],
)
def test_conditions(operator: str, wanted: Any, actual: list[str] | None, met: bool) -> None:
    context = {} if actual is None else {"the:key": actual}
    statement = allow(Condition={operator: {"The:Key": wanted}})
    assert verdict(statement, context=context) == ("allow" if met else "none")


def test_every_condition_has_to_hold() -> None:
    both = allow(Condition={"StringEquals": {"a:a": "1", "b:b": "2"}, "Bool": {"c:c": "true"}})
    assert verdict(both, context={"a:a": ["1"], "b:b": ["2"], "c:c": ["true"]}) == "allow"
    assert verdict(both, context={"a:a": ["1"], "b:b": ["2"]}) == "none"
    assert verdict(both, context={"a:a": ["1"], "c:c": ["true"]}) == "none"


def test_what_cannot_be_read_is_taken_the_careful_way() -> None:
    odd = {"StringResembles": {"a:a": "x"}}
    assert verdict(allow(Condition=odd)) == "none"
    assert verdict(allow(), deny(Condition=odd)) == "deny"
    assert verdict(allow(Condition={"NumericEquals": {"a:a": "ten"}}), context={"a:a": ["10"]}) == "none"


def test_policy_variables() -> None:
    home = allow(Resource=f"{BUCKET}/home/${{aws:username}}/*")
    assert verdict(home, resource=f"{BUCKET}/home/ada/x", context={"aws:username": ["ada"]}) == "allow"
    assert verdict(home, resource=f"{BUCKET}/home/bob/x", context={"aws:username": ["ada"]}) == "none"
    assert verdict(home, resource=f"{BUCKET}/home/ada/x") == "none"
    # A star in a value is a star, not a wildcard; so is ${*} in a pattern.
    assert verdict(home, resource=f"{BUCKET}/home/bob/x", context={"aws:username": ["*"]}) == "none"
    assert verdict(allow(Resource=f"{BUCKET}/${{*}}"), resource=f"{BUCKET}/*") == "allow"
    assert verdict(allow(Resource=f"{BUCKET}/${{*}}"), resource=f"{BUCKET}/a") == "none"
    named = allow(Condition={"StringEquals": {"aws:userid": "${aws:username}"}})
    assert verdict(named, context={"aws:userid": ["ada"], "aws:username": ["ada"]}) == "allow"


ADA = "arn:aws:iam::123456789012:user/ada"


@pytest.mark.parametrize(
    ("principal", "matches"),
    [
        ("*", True),
        ({"AWS": "*"}, True),
        ({"AWS": ADA}, True),
        ({"AWS": ["x", ADA]}, True),
        ({"AWS": "123456789012"}, True),
        ({"AWS": "arn:aws:iam::123456789012:user/bob"}, False),
        ({"Service": "sagemaker.amazonaws.com"}, False),
    ],
)
def test_principals(principal: Any, matches: bool) -> None:
    who = frozenset({ADA, "123456789012"})
    assert verdict(allow(Principal=principal), principals=who) == ("allow" if matches else "none")
    assert verdict(allow(), deny(NotPrincipal=principal), principals=who) == ("allow" if matches else "deny")
