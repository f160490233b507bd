-- It runs within everybody's ALTER TABLE, with the rights of its owner. So nothing here may fail, and every relation
-- and type is named with its schema, since temporary ones would be found first.
CREATE OR REPLACE FUNCTION etl.emit_schema_change_messages()
RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog
AS $$
DECLARE
    skip pg_catalog.text := current_setting('supabase_etl.skip_ddl_log', true);
BEGIN
    -- Where the server raises the level by itself (19 and newer), it is the effective one that counts.
    IF coalesce(current_setting('effective_wal_level', true), current_setting('wal_level')) <> 'logical' THEN
        RETURN;
    END IF;
    -- A custom setting is an empty string once the transaction that SET it LOCAL has ended.
    IF (CASE WHEN pg_input_is_valid(skip, 'boolean') THEN skip::boolean ELSE false END) THEN
        RETURN;
    END IF;
    PERFORM pg_logical_emit_message(true, 'supabase_etl_ddl', convert_to(jsonb_build_object(
        'trigger_event', tg_event,
        'command_tag', tg_tag,
        'current_query', current_query(),
        'current_database', current_database(),
        'server_version_num', current_setting('server_version_num')::integer,
        'nspname', n.nspname,
        'relname', c.relname,
        'oid', c.oid::bigint,
        'relkind', c.relkind,
        'commands', altered.commands,
        'identity', etl.describe_table_identity(c.oid),
        'columns', coalesce((
            -- As an oid it would be a string in JSON.
            SELECT jsonb_agg(to_jsonb(d) || jsonb_build_object('atttypid', d.atttypid::bigint) ORDER BY d.attnum)
            FROM etl.describe_table_schema(c.oid) d
        ), '[]')
    )::pg_catalog.text, CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END))
    FROM (
        -- One ALTER TABLE can come as several commands, as one that adds a serial column does.
        SELECT command.objid, min(command.number) AS first, jsonb_agg(jsonb_build_object(
            'command_tag', command.command_tag,
            'object_type', command.object_type,
            'object_identity', command.object_identity,
            'objsubid', command.objsubid
        ) ORDER BY command.number) AS commands
        FROM pg_event_trigger_ddl_commands() WITH ORDINALITY AS command (
            classid, objid, objsubid, command_tag, object_type, schema_name, object_identity, in_extension, parse_tree,
            number
        )
        WHERE command.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND NOT command.in_extension
        GROUP BY command.objid
    ) altered
    JOIN pg_catalog.pg_class c ON c.oid = altered.objid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p')
      AND c.relpersistence = 'p'
      AND EXISTS (
          SELECT FROM pg_catalog.pg_publication_tables p
          WHERE p.schemaname = n.nspname AND p.tablename = c.relname
      )
    ORDER BY altered.first;
END
$$;

REVOKE ALL ON FUNCTION etl.emit_schema_change_messages() FROM PUBLIC;

COMMENT ON FUNCTION etl.emit_schema_change_messages() IS
    'Writes what a published table looks like after ALTER TABLE into the WAL, as a logical message.';
