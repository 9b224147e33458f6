"""Refuses a schema in which other roles could make their own code run with relay's rights.

A role can do so if it owns something in the schema, or may create something in it or a trigger on
its tables. So can the owner of a table that refers to one of relay's tables: a deletion there fires
the deferred triggers of that table, up to PostgreSQL 17 as the role that commits.
"""

from typing import Any, Final

import psycopg

from relay.errors import OutboxUnusableError


def refuse_untrusted_roles(connection: psycopg.Connection[Any]) -> None:
    """Raise an error if another role owns a part of the schema, or may add to it.

    The check runs nothing that is in the schema. Superusers are trusted, and the roles that relay's
    role is a member of. Without a schema there is nothing to refuse.

    Args:
        connection: in a transaction with a safe search path.

    Raises:
        OutboxUnusableError: another role owns a part of it, or may add to it.
    """
    for what, right, role, referring in connection.execute(_UNTRUSTED_ROLES):
        if right is None:
            fault = f'{what} belongs to the role "{role}", and not to relay\'s own'
            remedy = f"make it relay's (ALTER ... OWNER TO), or grant \"{role}\" to relay's role"
        elif referring:
            fault = f'{what} is referred to by {referring}, which belongs to the role "{role}"'
            remedy = "drop that foreign key"
        else:
            fault = f'the role "{role}" has the right {right} on {what}'
            remedy = "REVOKE it"
        raise OutboxUnusableError(
            f"PostgreSQL: {fault}, so that what somebody else puts there would run with relay's"
            f" rights; {remedy}"
        )


_UNTRUSTED_ROLES: Final = """
    WITH place AS (
        SELECT oid, nspname, nspowner, nspacl FROM pg_namespace WHERE nspname = 'relay'
    ), tables AS (
        SELECT pg_class.oid, relname, relowner, relacl
        FROM pg_class JOIN place ON relnamespace = place.oid
    ), trusted AS (
        SELECT trusted.oid FROM pg_roles AS trusted, pg_roles AS own
        WHERE own.rolname = current_user AND (
            trusted.oid = own.oid OR trusted.rolsuper
            -- A superuser is taken for a member of every role.
            OR (NOT own.rolsuper AND pg_has_role(own.oid, trusted.oid, 'MEMBER'))
        )
    ), held (what, privilege, role, referring) AS (
        SELECT 'the schema relay', NULL, nspowner, NULL FROM place
        UNION ALL SELECT 'relay.' || relname, NULL, relowner, NULL FROM tables
        UNION ALL
        SELECT 'the function relay.' || proname, NULL, proowner, NULL
        FROM pg_proc JOIN place ON pronamespace = place.oid
        UNION ALL
        SELECT 'the type relay.' || typname, NULL, typowner, NULL
        FROM pg_type JOIN place ON typnamespace = place.oid
        UNION ALL
        SELECT 'the schema relay', privilege_type, grantee, NULL
        FROM place, aclexplode(nspacl)
        WHERE privilege_type = 'CREATE'
        UNION ALL
        SELECT 'relay.' || relname, privilege_type, grantee, NULL
        FROM tables, aclexplode(relacl)
        WHERE privilege_type IN ('TRIGGER', 'REFERENCES')
        UNION ALL
        SELECT format('relay.%s (%s)', relname, attname), privilege_type, grantee, NULL
        FROM tables JOIN pg_attribute ON attrelid = tables.oid, aclexplode(attacl)
        WHERE privilege_type = 'REFERENCES'
        UNION ALL
        SELECT
            'relay.' || tables.relname, 'REFERENCES', others.relowner, conrelid::regclass::text
        FROM pg_constraint
        JOIN tables ON tables.oid = confrelid JOIN pg_class AS others ON others.oid = conrelid
    )
    SELECT
        what, privilege, CASE role WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(role) END, referring
    FROM held WHERE role NOT IN (SELECT oid FROM trusted)
    ORDER BY privilege IS NOT NULL, what <> 'the schema relay', what LIMIT 1
"""
