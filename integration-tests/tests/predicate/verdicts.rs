//! What PostgreSQL says of a condition for each row.

/// Of the condition, the types and values of its parameters, and how many there are: the verdicts by commas. Where it fails, each row
/// is asked alone. What is wrong with the condition itself is an error.
pub(crate) const VERDICTS: &str = "
    create function public.verdicts(condition text, types text, arguments text, count int) returns text language plpgsql as $$
    declare answer text; answers text := ''; row_id int; every_row text; one_row text; statement text;
    begin
        every_row := format('select string_agg(coalesce((%s)::pg_catalog.bool::pg_catalog.text, ''null''), '','' order by id) from public.rows', condition);
        one_row := format('select coalesce((%s)::pg_catalog.bool::pg_catalog.text, ''null'') from public.rows where id operator(pg_catalog.=) $%s', condition, count + 1);
        if count > 0 then
            foreach statement in array array['every_row', 'one_row'] loop
                begin execute 'deallocate ' || statement; exception when others then null; end;
            end loop;
            execute 'prepare every_row (' || types || ') as ' || every_row;
            execute 'prepare one_row (' || types || ', int4) as ' || one_row;
            every_row := 'execute every_row (' || arguments || ')';
        end if;
        execute every_row into answers;
        return answers;
    exception when others then
        if sqlstate operator(pg_catalog.~) '^42' then raise; end if;
        answers := '';
        for row_id in select id from public.rows order by id loop
            begin
                if count > 0 then
                    execute 'execute one_row (' || arguments || ', ' || row_id || ')' into answer;
                else
                    execute one_row into answer using row_id;
                end if;
            exception
                when syntax_error or undefined_function or undefined_column or datatype_mismatch or ambiguous_function
                    or indeterminate_datatype or cannot_coerce or undefined_object or collation_mismatch
                    or indeterminate_collation or invalid_sql_statement_name then raise;
                when others then answer := 'error ' || sqlstate;
            end;
            answers := answers || ',' || answer;
        end loop;
        return ltrim(answers, ',');
    end $$";
