-- What schema etl is made of, as one JSON document; without the table in which sqlx records the migrations.
WITH relation AS (
    SELECT c.oid, c.relname, c.relkind
    FROM pg_class c
    WHERE c.relnamespace = to_regnamespace('etl') AND c.relname NOT LIKE '\_sqlx\_migrations%'
), enums AS (
    SELECT t.typname AS name, jsonb_agg(e.enumlabel ORDER BY e.enumsortorder) AS labels
    FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid
    WHERE t.typnamespace = to_regnamespace('etl')
    GROUP BY t.typname
), tables AS (
    SELECT r.relname AS name, jsonb_agg(jsonb_build_object(
        'name', a.attname,
        'type', format_type(a.atttypid, a.atttypmod),
        'not_null', a.attnotnull,
        'default', (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d
                    WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum),
        'identity', CASE WHEN a.attidentity <> '' THEN a.attidentity END
    ) ORDER BY a.attname) AS columns
    FROM relation r JOIN pg_attribute a ON a.attrelid = r.oid
    WHERE r.relkind = 'r' AND a.attnum >= 1 AND NOT a.attisdropped
    GROUP BY r.relname
), constraints AS (
    SELECT format('etl.%s.%s', r.relname, k.conname) AS name, pg_get_constraintdef(k.oid) AS definition
    FROM pg_constraint k JOIN relation r ON r.oid = k.conrelid
    WHERE k.contype IN ('p', 'u', 'f', 'c', 'x', 't')
), indexes AS (
    SELECT relname AS name, pg_get_indexdef(oid) AS definition FROM relation WHERE relkind = 'i'
), functions AS (
    SELECT p.proname AS name, jsonb_build_object(
        'arguments', pg_get_function_arguments(p.oid),
        'result', pg_get_function_result(p.oid),
        'language', (SELECT l.lanname FROM pg_language l WHERE l.oid = p.prolang),
        'volatility', p.provolatile,
        'strict', p.proisstrict,
        'security_definer', p.prosecdef,
        'config', p.proconfig,
        'public_execute', EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) g
                                  WHERE g.grantee = 0 AND g.privilege_type = 'EXECUTE'),
        'has_comment', obj_description(p.oid, 'pg_proc') IS NOT NULL
    ) AS definition
    FROM pg_proc p
    WHERE p.pronamespace = to_regnamespace('etl')
), event_triggers AS (
    SELECT evtname AS name, jsonb_build_object(
        'event', evtevent, 'tags', evttags, 'enabled', evtenabled, 'function', evtfoid::regproc::text
    ) AS definition
    FROM pg_event_trigger
)
SELECT jsonb_build_object(
    'enums', (SELECT jsonb_object_agg(name, labels) FROM enums),
    'tables', (SELECT jsonb_object_agg(name, columns) FROM tables),
    'constraints', (SELECT jsonb_object_agg(name, definition) FROM constraints),
    'indexes', (SELECT jsonb_object_agg(name, definition) FROM indexes),
    'functions', (SELECT jsonb_object_agg(name, definition) FROM functions),
    'event_triggers', (SELECT jsonb_object_agg(name, definition) FROM event_triggers)
)
