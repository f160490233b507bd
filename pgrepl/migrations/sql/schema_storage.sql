-- A table has several versions from now on; the one of its first copy is 0/0.
ALTER TABLE etl.table_schemas
    ADD snapshot_id pg_lsn NOT NULL DEFAULT '0/0',
    DROP CONSTRAINT table_schemas_pipeline_id_table_id_key,
    ADD UNIQUE (pipeline_id, table_id, snapshot_id);

CREATE INDEX idx_table_schemas_pipeline_table_snapshot_id
    ON etl.table_schemas (pipeline_id, table_id, snapshot_id DESC);

-- Ordinals count from 1 now. The constraint is away meanwhile: it is checked row by row, and each row's new
-- ordinal is its neighbour's old one.
ALTER TABLE etl.table_columns DROP CONSTRAINT table_columns_table_schema_id_column_order_key;

ALTER TABLE etl.table_columns RENAME column_order TO ordinal_position;

UPDATE etl.table_columns SET ordinal_position = ordinal_position + 1;

ALTER TABLE etl.table_columns
    ADD CONSTRAINT table_columns_table_schema_id_column_order_key UNIQUE (table_schema_id, ordinal_position),
    ADD primary_key_ordinal_position integer;

-- The order of the key's columns was never stored: the table itself knows it, if it is still there.
UPDATE etl.table_columns AS stored
SET primary_key_ordinal_position = key.position
FROM etl.table_schemas AS version
JOIN pg_catalog.pg_index AS i ON i.indrelid = version.table_id AND i.indisprimary
CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY AS key (attnum, position)
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = key.attnum
WHERE stored.table_schema_id = version.id
  AND stored.column_name = a.attname
  AND key.position <= i.indnkeyatts;

ALTER TABLE etl.table_columns DROP primary_key;

CREATE TYPE etl.destination_table_schema_status AS ENUM ('applying', 'applied');

CREATE TABLE etl.destination_tables_metadata (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline_id bigint NOT NULL,
    table_id oid NOT NULL,
    destination_table_id text NOT NULL,
    snapshot_id pg_lsn NOT NULL,
    previous_snapshot_id pg_lsn,
    schema_status etl.destination_table_schema_status NOT NULL,
    replication_mask bytea NOT NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    updated_at timestamp with time zone NOT NULL DEFAULT now(),
    UNIQUE (pipeline_id, table_id)
);

-- What was mapped has the columns of its stored version, all of them replicated: one 0x01 for each.
INSERT INTO etl.destination_tables_metadata
    (pipeline_id, table_id, destination_table_id, snapshot_id, schema_status, replication_mask, created_at, updated_at)
SELECT mapping.pipeline_id, mapping.source_table_id, mapping.destination_table_id, version.snapshot_id, 'applied',
       decode(repeat('01', (SELECT count(*)::integer FROM etl.table_columns AS c WHERE c.table_schema_id = version.id)),
              'hex'),
       mapping.created_at, mapping.updated_at
FROM etl.table_mappings AS mapping
JOIN etl.table_schemas AS version
    ON version.pipeline_id = mapping.pipeline_id AND version.table_id = mapping.source_table_id
ORDER BY mapping.id;

DROP TABLE etl.table_mappings;
