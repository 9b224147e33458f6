"""Compares the tables, indexes, functions and triggers with those that the migrations make.

A version number is not enough: a build between two releases may have made others under it.
"""

from hashlib import sha256
from typing import Any, Final

import psycopg


def differences(connection: psycopg.Connection[Any], version: int) -> list[str]:
    """Return how the schema differs from what relay's migrations up to the version make.

    Tables, functions and indexes that somebody has added do not count. A trigger, a rule or a
    unique index on one of relay's tables does: it changes what relay's writes do.

    Args:
        connection: a connection in a transaction with a safe search path.
        version: the version that the schema claims to have.

    Returns:
        A few words for each difference; none if the schema is as it must be.
    """
    made = SHAPES[version - 1]
    found = shape(connection)
    tables = {name.removeprefix("table ") for name in made if name.startswith("table ")}
    missing = [f"{name} is missing" for name in made if name not in found]
    changed = [f"{name} differs" for name in made if name in found and found[name] != made[name]]
    added = [
        f"{name} is not relay's"
        for name in found
        if name not in made
        and name.startswith(("trigger ", "rule ", "unique index "))
        and name.rpartition(" on ")[2] in tables
    ]
    return missing + changed + added


def shape(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """Return a digest of each object in the schema, by its kind and name."""
    return {
        name: sha256(text.encode()).hexdigest()[:8] for name, text in connection.execute(_THINGS)
    }


# In words that are the same in each version of PostgreSQL: 18 also counts NOT NULL as constraints.
_THINGS: Final = """
    WITH place AS (
        SELECT oid FROM pg_namespace WHERE nspname = 'relay'
    ), tables AS (
        SELECT pg_class.* FROM pg_class JOIN place ON relnamespace = place.oid
    )
    SELECT
        CASE relkind WHEN 'r' THEN 'table ' WHEN 'c' THEN 'type ' ELSE 'relation ' END || relname,
        concat_ws(
            ' ', relkind, relpersistence, relforcerowsecurity,
            (
                SELECT string_agg(
                    concat_ws(
                        ' ', attname, format_type(atttypid, atttypmod), attnotnull, attidentity,
                        attgenerated, pg_get_expr(adbin, adrelid)
                    ), ', ' ORDER BY attnum
                )
                FROM pg_attribute
                LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
                WHERE attrelid = tables.oid AND attnum > 0 AND NOT attisdropped
            ),
            (
                SELECT string_agg(pg_get_constraintdef(pg_constraint.oid), ', ' ORDER BY conname)
                FROM pg_constraint WHERE conrelid = tables.oid AND contype <> 'n'
            )
        )
    FROM tables WHERE relkind NOT IN ('i', 'I', 'S')
    UNION ALL
    SELECT
        concat(
            CASE WHEN indisunique OR indisexclusion THEN 'unique ' END, 'index ', indexed.relname,
            ' on ', tables.relname
        ),
        concat_ws(' ', pg_get_indexdef(indexrelid), indisvalid)
    FROM tables
    JOIN pg_index ON indrelid = tables.oid JOIN pg_class AS indexed ON indexed.oid = indexrelid
    UNION ALL
    SELECT
        concat('function ', proname),
        concat_ws(
            ' ', pg_get_function_arguments(pg_proc.oid), pg_get_function_result(pg_proc.oid),
            lanname, prosecdef, array_to_string(proconfig, ', '), prosrc
        )
    FROM pg_proc
    JOIN place ON pronamespace = place.oid JOIN pg_language ON pg_language.oid = prolang
    UNION ALL
    SELECT
        concat('trigger ', tgname, ' on ', relname),
        concat_ws(' ', pg_get_triggerdef(pg_trigger.oid), tgenabled)
    FROM pg_trigger JOIN tables ON tgrelid = tables.oid WHERE NOT tgisinternal
    UNION ALL
    SELECT concat('rule ', rulename, ' on ', relname), pg_get_ruledef(pg_rewrite.oid)
    FROM pg_rewrite JOIN tables ON ev_class = tables.oid
"""

_SHAPE_1: Final = {
    "function tally": "7c9fb9e6",
    "function tally_added": "6af7bf0f",
    "function tally_changed": "d6ff6435",
    "function tally_gone": "fc7088ff",
    "index entries_dead on entries": "fc68b48e",
    "index entries_delivered on entries": "ca9b4059",
    "index entries_pending on entries": "cd6f96b4",
    "index entries_rare on entries": "4002679a",
    "index entries_reason on entries": "c8716305",
    "index entries_suspect on entries": "edaf9df8",
    "index history_entry on history": "66c1d8e8",
    "index keys_address on keys": "d8a55c36",
    "index keys_email on keys": "a6fc508c",
    "index keys_user on keys": "caa1994a",
    "table entries": "6a93b0d2",
    "table history": "c2141b2e",
    "table keys": "2f6b0604",
    "table migrations": "11a29fb3",
    "table operations": "f541da5e",
    "table pace": "31ad4d4f",
    "table status": "6534bf7d",
    "table tallies": "5b530415",
    "trigger added on entries": "41144935",
    "trigger changed on entries": "2dbb3288",
    "trigger gone on entries": "54644df7",
    "type changed": "acaa85a3",
    "unique index entries_message_id_key on entries": "a70631e1",
    "unique index entries_pkey on entries": "ac5bc7e4",
    "unique index history_pkey on history": "e06a17be",
    "unique index keys_pkey on keys": "8c2f9d3f",
    "unique index migrations_pkey on migrations": "27b30ba7",
    "unique index operations_pkey on operations": "8ff2c6c8",
    "unique index tallies_pkey on tallies": "979addb5",
}
_SHAPE_2: Final = _SHAPE_1 | {
    "function tally": "cea50c0d",
    "function tally_added": "60d8ef4c",
    "function tally_changed": "0e555d9f",
    "function tally_gone": "76014240",
}
_REPLACED_IN_3: Final = {
    "function tally",
    "function tally_added",
    "function tally_changed",
    "function tally_gone",
    "table pace",
    "table tallies",
    "trigger added on entries",
    "trigger changed on entries",
    "trigger gone on entries",
    "type changed",
    "unique index tallies_pkey on tallies",
}
_SHAPE_3: Final = {name: made for name, made in _SHAPE_2.items() if name not in _REPLACED_IN_3} | {
    "function count_added": "3d73073f",
    "function count_changed": "dd6b7e2d",
    "function count_changes": "57dcfc29",
    "function count_gone": "100843b5",
    "index entries_pending on entries": "0c31aaeb",
    "index entries_suspect on entries": "fb239e41",
    "table counters": "c2861be0",
    "table entries": "57f99380",
    "table history": "a80e5955",
    "table throttles": "06209aa2",
    "trigger count_added on entries": "15114145",
    "trigger count_changed on entries": "b693e5e1",
    "trigger count_gone on entries": "d49d0519",
    "type change": "76f2825f",
    "unique index counters_pkey on counters": "0094f6ed",
    "unique index throttles_pkey on throttles": "7a396efa",
}
_SHAPE_4: Final = _SHAPE_3 | {
    "function forget_order": "d4469f02",
    "function join_lanes": "6e47c6ed",
    "function leave_lanes": "34d16a70",
    "function lock_lanes": "5c53a85d",
    "index entries_ordered on entries": "b037bf6a",
    "index lanes_entry on lanes": "bc061041",
    "table entries": "b66cc69f",
    "table lanes": "5f841e65",
    "trigger forget_order on entries": "9c51f1d8",
    "trigger join_lanes on lanes": "3e8ccbdb",
    "trigger leave_lanes on entries": "cf5063ad",
    "trigger leave_lanes_erased on entries": "aa64785c",
    "unique index lanes_pkey on lanes": "435a4c0a",
}
SHAPES: Final = (_SHAPE_1, _SHAPE_2, _SHAPE_3, _SHAPE_4)
"""What `shape` returns at each version; a test compares the last with the migrations."""
