CREATE EVENT TRIGGER supabase_etl_ddl_message_trigger ON ddl_command_end
    WHEN TAG IN ('ALTER TABLE')
    EXECUTE FUNCTION etl.emit_schema_change_messages();
