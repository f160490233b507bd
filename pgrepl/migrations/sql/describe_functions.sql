CREATE OR REPLACE FUNCTION etl.describe_table_schema(p_table oid)
RETURNS TABLE (
    attname text,
    attnum integer,
    atttypid oid,
    typname text,
    formatted_type text,
    atttypmod integer,
    attnotnull boolean,
    atthasdef boolean,
    default_expression text,
    attidentity text,
    atthasmissing boolean
)
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog
AS $$
    SELECT a.attname, a.attnum, a.atttypid, t.typname, format_type(a.atttypid, a.atttypmod), a.atttypmod,
           a.attnotnull, a.atthasdef, pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.atthasmissing
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    ORDER BY a.attnum
$$;

-- A partition may lack the key of the table that it belongs to, as when the key was added with ONLY. It then has the
-- key of the nearest table above it that has one, whose columns may have other numbers but never other names.
CREATE OR REPLACE FUNCTION etl.describe_table_identity(p_table oid)
RETURNS jsonb
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog
AS $$
    SELECT jsonb_build_object(
        'primary_key_attnums', coalesce((
            SELECT jsonb_agg(own.attnum ORDER BY key.position)
            FROM (
                SELECT i.indrelid, i.indkey, i.indnkeyatts
                FROM (
                    SELECT c.oid AS relid, 0 AS distance
                    UNION ALL
                    SELECT above.relid, above.distance
                    FROM pg_partition_ancestors(c.oid) WITH ORDINALITY AS above (relid, distance)
                ) candidate
                JOIN pg_catalog.pg_index i ON i.indrelid = candidate.relid AND i.indisprimary
                ORDER BY candidate.distance
                LIMIT 1
            ) nearest
            CROSS JOIN LATERAL unnest(nearest.indkey::smallint[]) WITH ORDINALITY AS key (attnum, position)
            JOIN pg_catalog.pg_attribute theirs ON theirs.attrelid = nearest.indrelid AND theirs.attnum = key.attnum
            JOIN pg_catalog.pg_attribute own ON own.attrelid = c.oid AND own.attname = theirs.attname
            WHERE key.position <= nearest.indnkeyatts
        ), '[]'),
        'relreplident', c.relreplident,
        'replica_identity_index_relname', (
            SELECT x.relname
            FROM pg_catalog.pg_index i
            JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
            WHERE i.indrelid = c.oid AND i.indisreplident
        ),
        'replica_identity_index_attnums', coalesce((
            SELECT jsonb_agg(key.attnum ORDER BY key.position)
            FROM pg_catalog.pg_index i
            CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY AS key (attnum, position)
            WHERE i.indrelid = c.oid AND i.indisreplident AND key.position <= i.indnkeyatts
        ), '[]')
    )
    FROM pg_catalog.pg_class c
    WHERE c.oid = p_table
$$;

REVOKE ALL ON FUNCTION etl.describe_table_schema(oid), etl.describe_table_identity(oid) FROM PUBLIC;

COMMENT ON FUNCTION etl.describe_table_schema(oid) IS
    'The columns of a table in their order, without dropped and generated ones.';

COMMENT ON FUNCTION etl.describe_table_identity(oid) IS
    'The primary key and the replica identity of a table, as column numbers in key order.';
