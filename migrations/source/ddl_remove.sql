-- Takes away what announces schema changes to Tidegate. Nothing else is touched.
DROP EVENT TRIGGER IF EXISTS tidegate_ddl_command_end;
DROP EVENT TRIGGER IF EXISTS tidegate_sql_drop;
DROP FUNCTION IF EXISTS tidegate_ddl.announce();
DROP SCHEMA IF EXISTS tidegate_ddl;
