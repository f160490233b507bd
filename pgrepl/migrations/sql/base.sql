CREATE TYPE etl.table_state AS ENUM ('init', 'data_sync', 'finished_copy', 'sync_done', 'ready', 'errored');

-- A table's history: each row points to the one before it, and one of them counts.
CREATE TABLE etl.replication_state (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline_id bigint NOT NULL,
    table_id oid NOT NULL,
    state etl.table_state NOT NULL,
    metadata jsonb,
    prev bigint REFERENCES etl.replication_state (id),
    is_current boolean NOT NULL DEFAULT true,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    updated_at timestamp with time zone NOT NULL DEFAULT now()
);

CREATE UNIQUE INDEX uq_replication_state_current_true ON etl.replication_state (pipeline_id, table_id)
    WHERE is_current = true;

CREATE TABLE etl.table_schemas (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline_id bigint NOT NULL,
    table_id oid NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    updated_at timestamp with time zone NOT NULL DEFAULT now(),
    UNIQUE (pipeline_id, table_id)
);

CREATE INDEX idx_table_schemas_pipeline_table ON etl.table_schemas (pipeline_id, table_id);

-- column_order counts from 0.
CREATE TABLE etl.table_columns (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_schema_id bigint NOT NULL REFERENCES etl.table_schemas (id) ON DELETE CASCADE,
    column_name text NOT NULL,
    column_type text NOT NULL,
    type_modifier integer NOT NULL,
    nullable boolean NOT NULL,
    primary_key boolean NOT NULL,
    column_order integer NOT NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    UNIQUE (table_schema_id, column_name),
    UNIQUE (table_schema_id, column_order)
);

CREATE INDEX idx_table_columns_order ON etl.table_columns (table_schema_id);

CREATE TABLE etl.table_mappings (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline_id bigint NOT NULL,
    source_table_id oid NOT NULL,
    destination_table_id text NOT NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    updated_at timestamp with time zone NOT NULL DEFAULT now(),
    UNIQUE (pipeline_id, source_table_id)
);
