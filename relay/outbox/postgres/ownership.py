"""Tells whether the schema is relay's alone.

Whoever owns something in it, or may make something in it or a trigger on its tables, could have
code of their own run with relay's rights.
"""

from typing import Any, Final

import psycopg

from relay.errors import OutboxUnusableError


def refuse_strangers(connection: psycopg.Connection[Any]) -> None:
    """Return if nobody else has a hand in the schema, or there is none.

    Nothing in the schema is used for it. Who may do anything anyway is trusted, a superuser, and
    who relay's role is a member of.

    Args:
        connection: in a transaction with a safe search path.

    Raises:
        OutboxUnusableError: somebody else owns a part of it, or may add to it.
    """
    for what, right, role in connection.execute(_STRANGERS):
        if right is None:
            said = f'{what} belongs to the role "{role}", and not to relay\'s own'
            remedy = f"make it relay's (ALTER ... OWNER TO), or grant \"{role}\" to relay's role"
        else:
            said = f'the role "{role}" has the right {right} on {what}'
            remedy = "REVOKE it"
        raise OutboxUnusableError(
            f"PostgreSQL: {said}, so that what somebody else puts there would run with relay's"
            f" rights; {remedy}"
        )


_STRANGERS: Final = """
    WITH place AS (
        SELECT oid, nspname, nspowner, nspacl FROM pg_namespace WHERE nspname = 'relay'
    ), tables AS (
        SELECT relname, relowner, relacl FROM pg_class JOIN place ON relnamespace = place.oid
    ), trusted AS (
        SELECT trusted.oid FROM pg_roles AS trusted, pg_roles AS own
        WHERE own.rolname = current_user AND (
            trusted.oid = own.oid OR trusted.rolsuper
            -- A superuser is taken for a member of every role.
            OR (NOT own.rolsuper AND pg_has_role(own.oid, trusted.oid, 'MEMBER'))
        )
    ), held (what, privilege, role) AS (
        SELECT 'the schema relay', NULL, nspowner FROM place
        UNION ALL SELECT 'relay.' || relname, NULL, relowner FROM tables
        UNION ALL
        SELECT 'the function relay.' || proname, NULL, proowner
        FROM pg_proc JOIN place ON pronamespace = place.oid
        UNION ALL
        SELECT 'the type relay.' || typname, NULL, typowner
        FROM pg_type JOIN place ON typnamespace = place.oid
        UNION ALL
        SELECT 'the schema relay', privilege_type, grantee FROM place, aclexplode(nspacl)
        WHERE privilege_type = 'CREATE'
        UNION ALL
        SELECT 'relay.' || relname, privilege_type, grantee FROM tables, aclexplode(relacl)
        WHERE privilege_type = 'TRIGGER'
    )
    SELECT what, privilege, CASE role WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(role) END
    FROM held WHERE role NOT IN (SELECT oid FROM trusted)
    ORDER BY privilege IS NOT NULL, what <> 'the schema relay', what LIMIT 1
"""
