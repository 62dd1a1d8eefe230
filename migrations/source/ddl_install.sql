-- Announces schema changes to Tidegate: in the transaction that changes tables, their types or publications, a logical message of a few
-- bytes is written to the WAL, at the change's place in the stream. Nothing else is read or written, and temporary tables are left
-- alone. Whatever goes wrong is a warning: the change itself never fails because of it.
--
-- The one who runs this owns it, and must be allowed to create event triggers: a superuser, or the role that a managed service has in
-- its place (rds_superuser, cloudsqlsuperuser, azure_pg_admin). The schema is made anew, so that nobody else can own the function.
CREATE SCHEMA tidegate_ddl;

CREATE FUNCTION tidegate_ddl.announce() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
    concerns boolean;
BEGIN
    IF tg_event = 'sql_drop' THEN
        concerns := EXISTS (
            SELECT FROM pg_event_trigger_dropped_objects()
            WHERE NOT is_temporary AND object_type IN (
                'table', 'table column', 'index', 'type', 'schema',
                'publication', 'publication relation', 'publication namespace'));
    ELSE
        concerns := EXISTS (
            SELECT FROM pg_event_trigger_ddl_commands() WHERE schema_name IS DISTINCT FROM 'pg_temp');
    END IF;
    IF concerns THEN
        PERFORM pg_logical_emit_message(true, 'tidegate.ddl', tg_tag);
    END IF;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'this schema change is not announced to Tidegate: %', SQLERRM;
END
$function$;

CREATE EVENT TRIGGER tidegate_ddl_command_end ON ddl_command_end
    WHEN TAG IN (
        'CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'ALTER TABLE', 'ALTER TYPE', 'ALTER DOMAIN', 'ALTER INDEX',
        'CREATE SCHEMA', 'ALTER SCHEMA', 'CREATE PUBLICATION', 'ALTER PUBLICATION')
    EXECUTE FUNCTION tidegate_ddl.announce();
CREATE EVENT TRIGGER tidegate_sql_drop ON sql_drop
    EXECUTE FUNCTION tidegate_ddl.announce();
-- Also for sessions that replay changes of another server.
ALTER EVENT TRIGGER tidegate_ddl_command_end ENABLE ALWAYS;
ALTER EVENT TRIGGER tidegate_sql_drop ENABLE ALWAYS;
